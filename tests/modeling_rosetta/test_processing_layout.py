"""Token by token and position by position, the processor lays rows out as the authors' code does."""

import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from modeling_rosetta.positions_rosetta import get_rope_index


TYPES = {"text": 0, "vit": 1, "vae": 2}


def user(*items):
    return {"role": "user", "content": list(items)}


def assistant(*items):
    return {"role": "assistant", "content": list(items)}


def text(value):
    return {"type": "text", "text": value}


def positions(sample: dict) -> torch.Tensor:
    grids = {}
    if "image_grid_thw" in sample:
        grids[TYPES["vit"]] = sample["image_grid_thw"][:, 1:] // 2
    if "latent_grid_hw" in sample:
        grids[TYPES["vae"]] = sample["latent_grid_hw"]
    return get_rope_index(sample["token_type_ids"][None], grids)[:, 0]


TRAINING = {
    "train_LM": [user(text("Hi")), assistant(text("Yo")), user(text("Ok")), assistant(text("By"))],
    "train_MMU": [user({"type": "image", "image": Image.new("RGB", (96, 64))}, text("Q")), assistant(text("A"))],
    "train_T2I": [user(text("cap")), assistant({"type": "latents", "latents": torch.zeros(8, 3, 4)})],
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_samples(name, processor, tiny_tokenizer, layout_examples):
    expected = layout_examples[name]["tokens"]
    sample = processor.training_sample(TRAINING[name])

    assert tiny_tokenizer.convert_ids_to_tokens(sample["input_ids"]) == [token["tok"] for token in expected]
    assert sample["token_type_ids"].tolist() == [TYPES[token["type"]] for token in expected]
    assert positions(sample).T.tolist() == [token["pos_thw"] for token in expected]
    # On purpose, the first token is no target here.
    targets = [token["is_CE_target"] and token["i"] > 0 for token in expected]
    assert (sample["labels"] != -100).tolist() == targets
    assert torch.equal(sample["labels"][targets], sample["input_ids"][targets])


@pytest.mark.parametrize("row, name", [(0, "infer_T2I_cond"), (1, "infer_T2I_uncond")])
def test_drawing_prompts(row, name, make_processor, tiny_tokenizer, layout_examples):
    expected = layout_examples[name]["tokens"]
    batch = make_processor(latent_prefix=True).draw_prompt("a red stone", height=48, width=80)

    assert tiny_tokenizer.convert_ids_to_tokens(batch["input_ids"][row]) == [token["tok"] for token in expected]
    types = [TYPES["vae"] if token["type"] == "vae" else TYPES["text"] for token in expected]
    assert batch["token_type_ids"][row].tolist() == types
    position_ids = get_rope_index(batch["token_type_ids"], {TYPES["vae"]: batch["latent_grid_hw"]})
    assert position_ids[:, row].T.tolist() == [token["pos_thw"] for token in expected]


def test_chat_prompt(processor, tiny_tokenizer, layout_examples):
    prompt = processor.apply_chat_template([user(text("Hi"))], add_generation_prompt=True, tokenize=True)
    assert tiny_tokenizer.convert_ids_to_tokens(prompt[0]) == layout_examples["infer_LM"]["tokens"]


def test_a_prompt_about_an_image_as_the_authors_infer(make_processor, tiny_tokenizer, layout_examples):
    expected = layout_examples["infer_understanding"]["tokens"]
    processor = make_processor(
        layout="authors_inference", latent_prefix=True, image_embeds_from=["noisy_latents", "pixel_values"]
    )
    image = {"type": "image", "image": Image.new("RGB", (96, 64)), "latents": torch.zeros(8, 3, 5)}
    batch = processor.apply_chat_template(
        [user(image, text("What?"))], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids, types = batch["input_ids"][0], batch["token_type_ids"][0].tolist()
    kinds = [next(kind for kind in TYPES if token["type"].startswith(kind)) for token in expected]
    names = tiny_tokenizer.convert_ids_to_tokens(ids)
    # Theirs has an image of 2 x 2 ViT tokens, and this one 2 x 3.
    places = [i for i, kind in enumerate(kinds) if kind == "vit"]
    assert names[: places[0]] == [token["tok"] for token in expected[: places[0]]]
    assert types[: places[0]] == [TYPES[kind] for kind in kinds[: places[0]]]
    assert names[places[0] + 6 :] == [token["tok"] for token in expected[places[-1] + 1 :]]
    assert types[places[0] : places[0] + 6] == [TYPES["vit"]] * 6 and batch["image_is_causal"].tolist() == [1]


def test_their_inference_crops_images_to_their_buckets(make_processor):
    """Where training squeezes them."""
    pixels = torch.zeros(3, 64, 160)
    pixels[:, :, 48:112] = 1.0  # the middle is white
    processor = make_processor(
        layout="authors_inference", latent_prefix=True, image_embeds_from=["noisy_latents", "pixel_values"]
    )
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
    batch = processor.apply_chat_template([user({"type": "image", "image": image})], tokenize=True, return_dict=True)
    height, width = batch["latent_grid_hw"][0]
    assert (height * 16, width * 16) in processor.inference_buckets
    shown = torch.as_tensor(batch["latent_pixels"]).float().mean(-1).view(height * 16, width * 16)
    kept = width / height * 64  # of the 160 columns
    assert abs(float((shown > 127).float().mean()) - 64 / kept) < 0.05


def test_prompt_is_the_start_of_its_training_sample(make_processor, tiny_tokenizer):
    # A tokenizer that merges line breaks, as Qwen's does, must not merge the header's with the response's.
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["ĊĊ"] = 2000
    state["model"]["merges"] = [["Ċ", "Ċ"]]
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), pad_token="<|endoftext|>"
    )
    assert merging.tokenize("a\n\nb") == ["a", "ĊĊ", "b"]

    processor = make_processor(tokenizer=merging)
    conversation = [user(text("\nquestion")), assistant(text("\nanswer"))]
    sample = processor.training_sample(conversation)
    prompt = processor.apply_chat_template(conversation[:-1], add_generation_prompt=True, tokenize=True)[0]
    assert sample["input_ids"][: len(prompt)].tolist() == prompt
    assert processor.decode(sample["labels"][sample["labels"] != -100]) == "\nanswer<|im_end|>"


def test_images_stand_before_the_turn_they_belong_to(processor):
    image = {"type": "image", "image": Image.new("RGB", (32, 32))}
    rendered = processor.apply_chat_template(
        [user(text("a"), image, image), assistant(text("b")), user(image, text("c"))], add_generation_prompt=True
    )
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    assert rendered == (
        f"{slot}{slot}<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
        f"{slot}<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_latent_prefix_names_the_nearest_ratio_in_training_too(make_processor, tiny_tokenizer):
    processor = make_processor(latent_prefix=True)
    sample = processor.training_sample(
        [user(text("x")), assistant({"type": "latents", "latents": torch.zeros(8, 2, 8)})]
    )
    tokens = tiny_tokenizer.convert_ids_to_tokens(sample["input_ids"])
    start = tokens.index("<|vision_start|>")
    assert tokens[start + 1 : start + 4] == ["<｜img_size_64｜>", "<｜img_ratio_0｜>", "<｜timestep｜>"]
    assert sample["token_type_ids"][start + 1 : start + 4].tolist() == [0, 0, 0]
    assert sample["labels"][start:].eq(-100).all()


def test_token_types_follow_the_configuration(make_processor):
    processor = make_processor(embeds_from=["input_ids", "noisy_latents", "pixel_values"])
    assert processor.training_sample(TRAINING["train_T2I"])["token_type_ids"].max() == 1
    assert processor.training_sample(TRAINING["train_MMU"])["token_type_ids"].max() == 2


def test_latents_are_flattened_row_major_in_the_order_of_their_slots(processor):
    first, second = torch.randn(8, 2, 3), torch.randn(8, 4, 1)
    slots = [{"type": "latents", "latents": latent} for latent in (first, second)]
    sample = processor.training_sample([user(text("x")), assistant(slots[0]), user(text("y")), assistant(slots[1])])
    assert sample["latent_grid_hw"].tolist() == [[2, 3], [4, 1]]
    assert torch.equal(sample["latents"][4], first[:, 1, 1])
    assert torch.equal(sample["latents"][6 + 2], second[:, 2, 0])


def test_a_response_can_be_continued(processor):
    rendered = processor.apply_chat_template([user(text("a")), assistant(text("b"))], continue_final_message=True)
    assert rendered == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"
