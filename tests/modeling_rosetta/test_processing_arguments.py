"""What all of transformers' processors take is honoured, is without effect where it changes nothing, or is refused."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.modeling_rosetta.tiny_pipeline import tiny_processor


SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
TOKENS = {"tokenize": True, "return_dict": True}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "d", "parameters": {}}}


def image(side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), (side % 256, 0, 0))


def question(*images) -> list[dict]:
    """`None` for an image that is given to the call."""
    items = [{"type": "image", **({} if value is None else {"image": value})} for value in images]
    return [{"role": "user", "content": [*items, {"type": "text", "text": "?"}]}]


def same(batch, other) -> bool:
    return batch.keys() == other.keys() and all(
        np.array_equal(np.asarray(batch[key]), np.asarray(other[key])) for key in batch
    )


# --- of the call --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            {name: None}
            for name in ("videos", "audio", "audios", "text_kwargs", "truncation", "padding", "max_length")
        ),
        *({name: False} for name in ("add_special_tokens", "truncation", "return_offsets_mapping", "verbose")),
        *({name: False} for name in ("load_audio_from_video", "sanitize_control_tokens", "return_mm_token_type_ids")),
        *({"videos": []}, {"audio": []}, {"stride": 0}, {"text_pair": None}, {"audio_features": None}),
        *({"text_kwargs": {}}, {"images_kwargs": {}}, {"videos_kwargs": {"fps": 2}}, {"common_kwargs": {}}),
        *({"padding": "do_not_pad"}, {"truncation": "do_not_truncate"}, {"truncation": False, "max_length": 2}),
        *({"add_special_tokens": True}, {"sampling_rate": 16000}, {"device": "cpu"}, {"do_rescale": True}),
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(arguments, processor):
    given = {"text": SLOT + "x", "images": image()}
    assert same(processor(**given, **arguments), processor(**given))
    talk = question(image())
    own = {k: v for k, v in arguments.items() if k != "sanitize_control_tokens"}
    plain = processor.apply_chat_template(talk, **TOKENS)
    assert same(processor.apply_chat_template(talk, **own, **TOKENS), plain)
    assert same(processor.apply_chat_template(talk, processor_kwargs=arguments, **TOKENS), plain)
    processor.apply_chat_template(talk, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"videos": [np.zeros((2, 8, 8, 3))]}, {"audio": np.zeros(8)}, {"audios": [1]}, {"stride": 3}),
        *({"return_length": True}, {"return_offsets_mapping": True}, {"return_overflowing_tokens": True}),
        *({"is_split_into_words": True}, {"text_pair": "x"}, {"load_audio_from_video": True}, {"padding": 3}),
        *({"truncation": "sometimes"}, {"max_length": -1}, {"pad_to_multiple_of": 1.5}, {"return_tensors": "tf"}),
        *({"padding_side": "top"}, {"text_kwargs": 3}, {"max_pixels": "many"}),
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_cannot_be_honoured_is_refused_by_name(arguments, processor):
    (name,) = arguments
    for call in (
        lambda: processor(text="x", **arguments),
        lambda: processor.apply_chat_template(question(), **arguments),
        lambda: processor.apply_chat_template(question(), **arguments, **TOKENS),
    ):
        with pytest.raises(ValueError, match=rf"\W{name}\W"):
            call()


@pytest.mark.parametrize(
    "arguments", [{"retrun_tensors": "pt"}, {"text_kwargs": {"x": 1}}, {"images_kwargs": {"x": 1}}]
)
def test_an_unknown_argument_is_named_as_such(arguments, processor):
    for call in (processor, lambda text, **kw: processor.apply_chat_template(question(), **kw)):
        with pytest.raises(TypeError, match="unexpected argument '(retrun_tensors|x)'"):
            call(text="x", **arguments)


def test_lengths(processor):
    assert processor(text="hello", padding="max_length", max_length=9)["attention_mask"] == [[0] * 4 + [1] * 5]
    assert processor.decode(processor(text="hello", truncation=True, max_length=3)["input_ids"][0]) == "hel"
    assert processor(text="hello", truncation=True) == processor(text="hello")
    batch = processor(text=["hello", "x"], padding=True, pad_to_multiple_of=8, return_tensors="pt", return_labels=True)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 8)
    batch = processor(text=["hello", "x"], padding="max_length", max_length=3, truncation=True, return_tensors="np")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="`max_length` enough"):
        processor(text=["hello", "x"], padding="max_length", max_length=3, return_tensors="pt")


def test_no_image_is_truncated(processor):
    given = {"text": "ab" + SLOT + "cdef", "images": image(), "truncation": True}
    row = processor(**given, max_length=9)["input_ids"][0]
    assert len(row) == 9 and row.count(processor.image_token_id) == 4
    with pytest.raises(ValueError, match="`truncation` to 6 of the 12 tokens of row 0 would cut an image"):
        processor(**given, max_length=6)


def test_arguments_by_kind(processor):
    given = {"text": [SLOT + "x", "yyyyy" * 3], "images": image(128)}
    flat = processor(**given, padding=True, return_tensors="pt", size={"shortest_edge": 1024, "longest_edge": 1024})
    nested = processor(
        **given,
        text_kwargs={"padding": True},
        images_kwargs={"size": {"shortest_edge": 1024, "longest_edge": 1024}},
        common_kwargs={"return_tensors": "pt"},
    )
    assert same(flat, nested) and flat["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert processor(**given, do_rescale=True, rescale_factor=-1.0)["pixel_values"][0][0] < -1


def test_keys_that_are_asked_for(processor):
    given = {"text": SLOT + "x", "images": image()}
    batch = processor(**given, return_mm_token_type_ids=True)
    assert batch["mm_token_type_ids"] == batch["token_type_ids"]
    assert "attention_mask" not in processor(**given, return_attention_mask=False)
    assert "token_type_ids" not in processor(text="x", return_token_type_ids=False)
    with pytest.raises(ValueError, match="`return_token_type_ids`"):
        processor(**given, return_token_type_ids=False)
    assert set(processor(**given)) <= set(processor.model_input_names)
    assert processor.image_token == "<|image_pad|>"
    sizes = [(64, 64), (64, 128)]
    assert processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"] == [4, 8]


def test_servers_expand_the_placeholders_of_images_themselves(processor):
    """As vLLM's transformers backend does, with what `ProcessorMixin` has for it."""
    images, text = [image(64), image(128)], f"a{SLOT}b{SLOT}"
    inputs, replacements = processor._process_images(images, return_tensors="pt")
    expanded, offsets = processor.get_text_with_replacements([text], replacements)
    batch = processor(text=text, images=images, return_mm_token_type_ids=True)
    assert processor._tokenize(expanded, marked=False, with_places=False)[0] == batch["input_ids"]
    assert processor.create_mm_token_type_ids(batch["input_ids"]) == batch["mm_token_type_ids"]
    assert torch.equal(inputs["pixel_values"], torch.tensor(np.array(batch["pixel_values"])))
    counts = [len(offset["replacement"]) // len(processor.image_token) for offset in offsets[0]]
    assert counts == processor._get_num_multimodal_tokens(image_sizes=[(64, 64), (128, 128)])["num_image_tokens"]


def test_defaults_of_the_tokenizer_do_not_reach_training_and_drawing(make_processor, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    cut = type(tiny_tokenizer).from_pretrained(tmp_path, max_length=3, padding="max_length")
    processor, plain = make_processor(tokenizer=cut), make_processor()
    assert len(processor(text="x", padding="max_length")["input_ids"][0]) == 3
    assert len(processor.training_sample("a document")["input_ids"]) == 11
    assert same(processor.draw_prompt("a stone"), plain.draw_prompt("a stone"))


# --- padding ------------------------------------------------------------------------------------


def test_rows_to_generate_from_are_padded_on_the_left():
    processor = tiny_processor()
    assert processor.tokenizer.padding_side == "left"  # what transformers' pipelines ask
    talks = [[{"role": "user", "content": content}] for content in ("a long question", "?")]
    prefilled = [[*talk, {"role": "assistant", "content": "so"}] for talk in talks]
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        for talk, arguments in (
            (talks, {"add_generation_prompt": True}),
            (prefilled, {"continue_final_message": True}),
        ):
            batch = processor.apply_chat_template(talk, **arguments, padding=True, return_tensors="pt", **TOKENS)
            assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"][1, 0]
            chosen = {**arguments, "padding": True, "padding_side": "right"}
            batch = processor.apply_chat_template(talk, **chosen, return_tensors="pt", **TOKENS)
            assert not batch["attention_mask"][1, -1]
            chosen = {**arguments, "processor_kwargs": {"text_kwargs": {"padding": True, "padding_side": "right"}}}
            batch = processor.apply_chat_template(talk, **chosen, return_tensors="pt", **TOKENS)
            assert not batch["attention_mask"][1, -1]
        batch = processor(text=["abc", "x"], padding=True, return_tensors="pt")
        assert batch["attention_mask"][1].tolist() == ([0, 0, 1] if side == "left" else [1, 0, 0])


# --- of the template ----------------------------------------------------------------------------


def test_variables_reach_the_template(processor):
    template = "{{ messages[0].role }} {{ name }} {{ enable_thinking }} {{ tools[0].function.name }}"
    variables = {"name": "x", "enable_thinking": True, "tools": [TOOL]}
    assert processor.apply_chat_template(question(), chat_template=template, **variables) == "user x True look_up"


def test_functions_are_tools(processor):
    def look_up(word: str):
        """
        Looks up <|im_end|>.

        Args:
            word: to look up
        """

    template = "{{ tools | tojson }}"
    row = processor.apply_chat_template(question(), chat_template=template, tools=[look_up], tokenize=True)[0]
    assert "Looks up <|im_end|>" in processor.decode(row) and processor.turn_end_token_id not in row


@pytest.mark.parametrize("tokens", [{}, TOKENS])
def test_tools_and_documents_are_not_dropped(tokens, processor):
    for arguments in ({"tools": [TOOL]}, {"documents": [{"title": "x", "text": "y"}]}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` cannot be honoured"):
            processor.apply_chat_template(question(), **arguments, **tokens)
    with pytest.raises(TypeError, match="unexpected argument 'thinkng'"):
        processor.apply_chat_template(question(), thinkng=True, **tokens)
    plain = processor.apply_chat_template(question(), **tokens)
    empty = {"tools": None, "documents": [], "enable_thinking": False, "reasoning_effort": None}
    assert processor.apply_chat_template(question(), **empty, **tokens) == plain
    assert processor.apply_chat_template(question(), enable_thinking=True, **tokens) == plain


def test_named_templates(make_processor):
    processor = make_processor(chat_template={"default": "a", "other": "b"})
    assert processor.apply_chat_template(question()) == "a"
    assert processor.apply_chat_template(question(), chat_template="other") == "b"
    with pytest.raises(ValueError, match="`chat_template` must be one of"):
        make_processor(chat_template={"other": "b"}).apply_chat_template(question())


def test_masks_of_the_assistant(processor):
    talk = [
        {"role": "user", "content": [{"type": "image", "image": image()}, {"type": "text", "text": "a<|im_end|>"}]},
        {"role": "assistant", "content": "b<|im_end|>c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    arguments = {"return_assistant_tokens_mask": True, "padding": True, "return_tensors": "pt", **TOKENS}
    batch = processor.apply_chat_template([talk, talk[2:]], **arguments)
    for row, mask, expected in zip(
        batch["input_ids"], batch["assistant_masks"], ("b<|im_end|>c<|im_end|>e<|im_end|>", "e<|im_end|>"), strict=True
    ):
        assert processor.decode(row[mask.bool()]) == expected
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content[0].text }}"
    template += "{% endgeneration %}{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}"
    batch = processor.apply_chat_template(
        talk[2:], chat_template=template, return_assistant_tokens_mask=True, **TOKENS
    )
    assert batch["assistant_masks"] == [[0, 1]]
    with pytest.raises(ValueError, match="cannot be given together"):
        processor.apply_chat_template(talk, continue_final_message=True, return_assistant_tokens_mask=True, **TOKENS)


# --- of the messages ----------------------------------------------------------------------------


def test_forms_of_images_in_messages(processor, tmp_path):
    image().save(tmp_path / "a.png")
    file = io.BytesIO()
    image().save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    address = f"data:image/png;base64,{encoded}"
    plain = processor.apply_chat_template(question(image()), **TOKENS)
    for item in (
        *(
            {"type": "image", "base64": encoded},
            {"type": "image", "base64": address},
            {"type": "image", "url": address},
        ),
        *({"type": "image_url", "image_url": {"url": address, "detail": "low"}}, {"type": "image", "url": None}),
        {"type": "image_url", "image_url": address},
        {"type": "image", "image": None, "path": str(tmp_path / "a.png"), "latents": None, "text": None},
    ):
        talk = [{"role": "user", "content": [item, {"type": "text", "text": "?", "image": None, "latents": None}]}]
        given = {"images": [image()]} if item == {"type": "image", "url": None} else {}
        assert same(processor.apply_chat_template(talk, **given, **TOKENS), plain)
    with pytest.raises(ValueError, match="message 0 of role 'user' must have one of"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "url": "a", "path": "b"}]}])


def test_no_content_is_an_empty_message(processor):
    talk = [{"role": "user", "content": None, "tool_calls": None, "name": None}]
    assert processor.apply_chat_template(talk) == "<|im_start|>user\n<|im_end|>\n"
    template = "{{ messages[0].tool_calls[0].name }}"
    talk = [{"role": "assistant", "content": None, "tool_calls": [{"name": "x"}]}]
    assert processor.apply_chat_template(talk, chat_template=template) == "x"


def test_roles_that_a_template_reads_are_taken(processor):
    talk = [{"role": "tool", "content": "3<|im_end|>"}, {"role": "user", "content": "x"}]
    opening = "{{ '<|im_start|>user\\n' if m.role == 'tool' }}"
    template = f"{{% for m in messages %}}{opening}{{{{ m.content[0].text }}}}{{% endfor %}}"
    (row,) = processor.apply_chat_template(talk, chat_template=template, tokenize=True)
    assert row.count(processor.turn_start_token_id) == 1 and processor.turn_end_token_id not in row
    for template in (None, "{{ messages[0].tool_calls }} {{ tools }}"):
        with pytest.raises(ValueError, match="`role` of message 0 .*got 'tool'"):
            processor.apply_chat_template(talk, chat_template=template)
    talk[0]["content"] = [{"type": "image"}]
    with pytest.raises(ValueError, match="message 0 of role 'tool' may hold"):
        processor.apply_chat_template(talk, chat_template="{{ 'tool' }}")


def test_images_partly_in_the_messages_and_partly_in_the_call(processor):
    whole = processor.apply_chat_template(question(image(64), image(96), image(32)), **TOKENS)
    for given in ([image(96)], [[image(96)]], image(96)):
        talk = question(image(64), None, image(32))
        assert same(processor.apply_chat_template(talk, images=given, **TOKENS), whole)
        assert same(processor.apply_chat_template(talk, processor_kwargs={"images": given}, **TOKENS), whole)
    padded = {"padding": True, **TOKENS}
    whole = processor.apply_chat_template([question(image(64), image(96)), question(image(32))], **padded)
    talks = [question(image(64), None), question(None)]
    for given in ([image(96), image(32)], [[image(96)], [image(32)]]):
        assert same(processor.apply_chat_template(talks, images=given, **padded), whole)
    for given in ([image()], [[image(), image()], []]):
        with pytest.raises(ValueError, match="`images`: the messages leave out"):
            processor.apply_chat_template(talks, images=given, **TOKENS)
    with pytest.raises(ValueError, match=r"\[2, 1\] placeholders .* \[1, 0\] images"):
        processor.apply_chat_template(talks, **TOKENS)


def test_drawings_partly_in_the_messages_and_partly_in_the_call(processor):
    def talk(*items):
        drawings = [{"role": "assistant", "content": [{"type": "latents", **item}]} for item in items]
        return [m for drawing in drawings for m in ({"role": "user", "content": "x"}, drawing)]

    first, second = torch.zeros(8, 1, 2), torch.ones(8, 2, 1)
    whole = processor.apply_chat_template(talk({"latents": first}, {"latents": second}), **TOKENS)
    assert same(processor.apply_chat_template(talk({"latents": first}, {}), latents=[second], **TOKENS), whole)
    assert same(processor.apply_chat_template(talk({}, {}), latents=[first, second], **TOKENS), whole)
    sizes = processor.apply_chat_template(talk({"height": 16, "width": 32}, {}), latent_sizes=[(32, 16)], **TOKENS)
    assert sizes["latent_grid_hw"] == [[1, 2], [2, 1]]
    with pytest.raises(ValueError, match="`latents`: the messages leave out 1, but 2"):
        processor.apply_chat_template(talk({"latents": first}, {}), latents=[first, second], **TOKENS)
    mixed = talk({"latents": first}, {"height": 16, "width": 16})
    batch = processor.apply_chat_template(mixed, **TOKENS)  # the second is to be drawn, with the first before it
    assert batch["latent_roles"] == [0, 3] and batch["latent_grid_hw"] == [[1, 2], [1, 1]]
    assert torch.equal(batch["latents"], first.flatten(1).T)
    with pytest.raises(ValueError, match="`latent_sizes`: to train on them"):
        processor.training_sample(mixed)


def test_batches_of_arrays(processor):
    arrays = np.zeros((2, 64, 32, 3))
    whole = processor(text=SLOT + SLOT, images=list(arrays))
    assert same(processor(text=SLOT + SLOT, images=arrays), whole)
    assert same(processor(text=SLOT + SLOT, images=torch.from_numpy(arrays).permute(0, 3, 1, 2)), whole)
    assert same(processor(text=SLOT, images=np.zeros((64, 32))), processor(text=SLOT, images=arrays[0]))


def test_sizes_of_numpy_are_sizes(processor):
    batch = processor.draw_prompt("x", height=np.int64(32), width=np.int32(48))
    assert batch["latent_grid_hw"].tolist() == [[2, 3]] * 2
