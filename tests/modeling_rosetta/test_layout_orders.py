"""Random conversations in every layout: packed as alone, batched as single, cached as uncached, and back."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rosetta.latent_roles_rosetta import COPY, DRAFT, is_drawn
from tests.conftest import TINY, VAE, VIT, tiny_model
from trainer.data.collator import RosettaDataCollator
from trainer.flow_matching import noised_batch


BOTH = ["noisy_latents", "pixel_values"]
LAYOUTS = {
    "in order": {"layout": "in_order"},
    "in order, latents": {"layout": "in_order", "image_embeds_from": ["noisy_latents"]},
    "in order, both, with time": {"layout": "in_order", "image_embeds_from": BOTH, "latent_prefix": True},
    "authors, training": {},
    "authors, training, both": {"image_embeds_from": BOTH},
    "authors, inference": {"layout": "authors_inference", "image_embeds_from": BOTH, "latent_prefix": True},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def of_layout(request, make_processor):
    """A processor, and a model that fits it."""
    processor = make_processor(**LAYOUTS[request.param])
    marks = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "timestep_token_id")
    vision = {**TINY["vision_config"], "patch_size": 16}
    model = tiny_model(
        vocab_size=len(processor.tokenizer), vision_config=vision, **{mark: getattr(processor, mark) for mark in marks}
    )
    model.set_experts_implementation("eager")  # which computes in float64
    return processor, model.double()


def talk(processor, seed: int) -> list[dict]:
    """A conversation of two turns each, the items of which stand in any order that the layout allows."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def latents() -> torch.Tensor:
        return torch.randn(8, choose.randint(1, 3), choose.randint(2, 3), generator=generator)

    def item(kind: str) -> dict:
        if kind == "text":
            return {"type": "text", "text": "".join(choose.choices("abc <|im_end|>\n", k=choose.randint(1, 6)))}
        if kind == "latents":
            return {"type": "latents", "latents": latents()}
        pixels = np.random.default_rng(choose.randrange(99)).integers(0, 255, (32, 32 * choose.randint(1, 2), 3))
        return {"type": "image", "image": Image.fromarray(pixels.astype(np.uint8)), "latents": latents()}

    answers = ["text", "latents", "image"] if processor.layout == "in_order" else ["text", "latents"]
    messages = [{"role": "system", "content": "s"}]
    for _ in range(2):
        user = [item(kind) for kind in choose.choices(["text", "image"], k=choose.randint(1, 4))]
        messages.append({"role": "user", "content": user})
        assistant = [item(kind) for kind in choose.choices(answers, k=choose.randint(1, 4))]
        messages.append({"role": "assistant", "content": assistant})
    return messages


def plain(messages: list[dict], processor) -> list[tuple]:
    """What is said, in order: neighbouring texts as one, an image by its latents and its pixels, as far as it is given
    as these. Images of a turn first, where the layout puts them there."""
    said = []
    for message in messages:
        parts: list = [message["role"]]
        content = message["content"]
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if processor.layout == "authors_training":
            content = sorted(content, key=lambda item: item["type"] != "image")
        for item in content:
            if item["type"] == "text" and isinstance(parts[-1], list):
                parts[-1][0] += item["text"]
            elif item["type"] == "text":
                parts.append([item["text"]])
            else:
                shown = () if item["type"] == "latents" else processor.image_embeds_from
                latents = item["latents"].tolist() if shown == () or "noisy_latents" in shown else None
                pixels = item.get("pixel_values")
                if pixels is None and "pixel_values" in shown:
                    pixels = processor.image_processor([item["image"]], return_tensors="pt")["pixel_values"]
                parts.append((item["type"], latents, None if pixels is None else pixels.tolist()))
        said.append(parts)
    return said


def noisy(processor, model, seed: int) -> dict:
    """One sample as a batch, with noise."""
    batch = RosettaDataCollator(processor.tokenizer.pad_token_id)([processor.training_sample(talk(processor, seed))])
    return noised_batch(batch, model.config, generator=torch.Generator().manual_seed(seed))


def test_a_round_trip_gives_the_conversation_back(of_layout):
    processor, _ = of_layout
    for seed in range(12):
        messages = talk(processor, seed)
        again = processor.conversation_of(processor.training_sample(messages))
        assert plain(again, processor) == plain(messages, processor), seed


def test_packed_is_alone_with_its_gradients(of_layout):
    processor, model = of_layout
    samples = [processor.training_sample(talk(processor, seed)) for seed in range(3)]
    packed = RosettaDataCollator(processor.tokenizer.pad_token_id, max_length=2000, packed=True)(samples)
    packed = noised_batch(packed, model.config, generator=torch.Generator().manual_seed(0), one_by_one=True)
    generator, alone = torch.Generator().manual_seed(0), []
    for sample in samples:
        batch = RosettaDataCollator(processor.tokenizer.pad_token_id)([sample])
        alone.append(noised_batch(batch, model.config, generator=generator, one_by_one=True))
    texts = sum((batch["labels"][:, 1:] != -100).sum() for batch in alone)
    roles = [b.get("latent_roles", torch.ones(len(b.get("timesteps", ())))) for b in alone]
    images = sum(is_drawn(of_sample).sum() for of_sample in roles)
    counts = {"num_text_targets": texts, "num_latent_images": images}

    def trained(batches: list[dict]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        outputs = [model(**batch, **counts, use_cache=False) for batch in batches]
        loss = sum(
            (output.text_loss or 0) + (0 if output.flow_loss is None else output.flow_loss) for output in outputs
        )
        loss.backward()
        velocity = torch.cat([output.velocity.detach() for output in outputs if output.velocity is not None])
        return velocity, loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for one, other in zip(trained([packed]), trained(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@torch.no_grad()
def test_batched_is_single(of_layout):
    processor, model = of_layout
    singles = [noisy(processor, model, seed) for seed in (3, 4, 5)]
    length = max(batch["input_ids"].shape[1] for batch in singles)
    rows = ("input_ids", "token_type_ids", "attention_mask", "labels")
    batch = {
        key: torch.cat([torch.nn.functional.pad(one[key], (length - one[key].shape[1], 0)) for one in singles])
        for key in rows[:3]
    }
    for key in {key for one in singles for key in one} - {*rows}:
        if key == "latent_roles":  # a sample without it is all to draw
            values = [one.get(key, torch.ones(len(one.get("timesteps", ())), dtype=torch.long)) for one in singles]
        else:
            values = [one[key] for one in singles if key in one]
        batch[key] = torch.cat(values)
    batch.pop("velocity_labels", None)
    together = model(**batch).logits
    for row, one in zip(together, singles, strict=True):
        alone = model(**{key: value for key, value in one.items() if key not in ("labels", "velocity_labels")}).logits
        torch.testing.assert_close(row[-alone.shape[1] :], alone[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_cached_is_uncached(of_layout):
    """Piece by piece, as it is told: an image to draw is taken back from the cache when its clean copy comes."""
    processor, model = of_layout
    for seed in range(6, 9):
        batch = noisy(processor, model, seed)
        rest = {key: value for key, value in batch.items() if key not in ("labels", "velocity_labels")}
        whole = model(**rest)
        for piece, places, is_draft in pieces(rest, processor):
            cache = locals().get("cache") if places.start else None
            output = model(**piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(output.logits[0], whole.logits[0, places], rtol=0, atol=1e-4)
            if output.velocity is not None:
                columns = (rest["token_type_ids"][0] == VAE).cumsum(0)[places] - 1
                columns = columns[piece["token_type_ids"][0] == VAE]
                torch.testing.assert_close(output.velocity, whole.velocity[columns], rtol=0, atol=1e-4)
            if is_draft:
                cache.crop(-piece["input_ids"].shape[1])


def pieces(batch: dict, processor):
    """A row in pieces of one image, or of text: (the batch of each, its columns, whether it is a draft)."""
    types = batch["token_type_ids"][0].tolist()
    roles = batch.get("latent_roles", torch.ones(len(batch.get("timesteps", ())))).tolist()
    sizes = {VAE: batch.get("latent_grid_hw"), VIT: batch.get("image_grid_thw")}
    done, start = {VAE: 0, VIT: 0}, 0
    entries = {VAE: 0, VIT: 0}
    while start < len(types):
        has_time = batch["input_ids"][0, start] == processor.timestep_token_id
        first = start + bool(has_time)
        kind, piece, is_draft = types[first], {}, False
        if kind == 0:
            end = first + 1
            while end < len(types) and types[end] == 0 and batch["input_ids"][0, end] != processor.timestep_token_id:
                end += 1
        else:
            number, grid = done[kind], sizes[kind][done[kind]]
            tokens = int(grid.prod()) // (4 if kind == VIT else 1)
            end, own = first + tokens, slice(entries[kind], entries[kind] + int(grid.prod()))
            one = slice(number, number + 1)
            if kind == VIT:
                piece = {"pixel_values": batch["pixel_values"][own], "image_grid_thw": sizes[kind][one]}
                piece |= {"image_is_causal": batch["image_is_causal"][one]} if "image_is_causal" in batch else {}
            else:
                piece = {"noisy_latents": batch["noisy_latents"][own], "latent_grid_hw": sizes[kind][one]}
                piece["timesteps"], is_draft = batch["timesteps"][one], roles[number] == DRAFT
            done[kind], entries[kind] = number + 1, own.stop
        places = slice(start, end)
        yield {**{k: batch[k][:, places] for k in ("input_ids", "token_type_ids")}, **piece}, places, is_draft
        start = end


def test_drafts_are_seen_by_themselves_only(of_layout):
    """Another noise changes nothing that comes behind."""
    processor, model = of_layout
    batch = noisy(processor, model, 9)
    if processor.layout != "in_order":
        assert not (batch.get("latent_roles", torch.ones(1)) == DRAFT).any()
        return
    roles = batch["latent_roles"]
    assert (roles == DRAFT).sum() == (roles == COPY).sum() > 0
    rest = {key: value for key, value in batch.items() if key not in ("labels", "velocity_labels")}
    of_draft = (roles == DRAFT).repeat_interleave(batch["latent_grid_hw"].prod(-1))
    other = {**rest, "noisy_latents": rest["noisy_latents"] + of_draft[:, None]}
    with torch.no_grad():
        before, after = model(**rest), model(**other)
    is_seen = torch.ones_like(rest["token_type_ids"][0], dtype=torch.bool)
    is_seen[rest["token_type_ids"][0] == VAE] = ~of_draft
    torch.testing.assert_close(before.logits[0, is_seen], after.logits[0, is_seen], rtol=0, atol=1e-5)
    assert not torch.allclose(before.velocity[of_draft], after.velocity[of_draft])


SLOT = "<|vision_start|><|vision_pad|><|vision_end|>"


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "user", "content": [{"type": "latents", "height": 16, "width": 16}]}], "role 'user' may hold"),
        ([{"role": "system", "content": [{"type": "image"}]}], "role 'system' may hold"),
        ([{"role": "user", "content": [{"type": "image"}]}], "`images`: 0 were given, fewer than the messages have"),
        ([{"role": "user", "content": [{"type": "image", "image": "nowhere"}]}], "image 0 cannot be read"),
        (
            [{"role": "assistant", "content": [{"type": "latents", "height": 20, "width": 16}]}],
            "`height` of an image to draw must be a positive multiple of 16",
        ),
    ],
)
def test_orders_that_cannot_be_are_named(make_processor, messages, message):
    processor = make_processor(layout="in_order", image_embeds_from=BOTH)
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages, tokenize=True)


def test_slots_that_are_not_closed_are_named(make_processor):
    processor = make_processor(layout="in_order")
    for text in (SLOT[:-14], SLOT[16:], "<|vision_pad|>"):
        with pytest.raises(ValueError, match="must stand between <.vision_start.> and <.vision_end.>"):
            processor(text=text, latent_sizes=[(16, 16)])
    assert processor(text=SLOT, latent_sizes=[(16, 16)])["latent_grid_hw"] == [[1, 1]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layout": "any"}, "`layout` must be one of"),
        ({"image_embeds_from": []}, "`image_embeds_from` must be one or both of"),
        ({"image_embeds_from": ["latents"]}, "`image_embeds_from` must be one or both of"),
        ({"layout": "authors_inference"}, "`layout`: the authors' inference has `latent_prefix` True"),
        ({"image_embeds_from": BOTH, "embeds_from": ["input_ids", "pixel_values"]}, "no token type is embedded from"),
    ],
)
def test_attributes_that_do_not_fit_are_named(make_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**arguments)


def test_a_template_of_a_users_own_must_know_the_layout(make_processor):
    processor = make_processor(layout="in_order", chat_template="{{ messages[0].role }}")
    with pytest.raises(ValueError, match="`chat_template` must put images `in_place`"):
        processor.apply_chat_template([{"role": "user", "content": "a"}])


def test_layouts_are_saved(make_processor, tmp_path):
    processor = make_processor(layout="in_order", image_embeds_from=BOTH)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert (again.layout, again.image_embeds_from) == ("in_order", BOTH)


def test_what_is_learnt_in_order(make_processor):
    """The assistant's text, its ends and the openings of its drawings, and nothing of a message without weight."""
    processor = make_processor(layout="in_order")
    image, drawing = {"type": "image", "image": Image.new("RGB", (32, 32))}, {"type": "latents"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "q"}, image]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "a"}, {**drawing, "latents": torch.zeros(8, 1, 2)}],
        },
        {"role": "user", "content": "r"},
        {
            "role": "assistant",
            "content": [
                {**drawing, "latents": torch.ones(8, 1, 2)},
                image,
                drawing | {"latents": torch.ones(8, 1, 1)},
            ],
        },
    ]
    sample = processor.training_sample(messages)
    learnt = processor.tokenizer.convert_ids_to_tokens(sample["labels"][sample["labels"] != -100])
    opens, end = "<|vision_start|>", "<|im_end|>"
    assert learnt == ["a", opens, end, opens, opens, end]
    assert sample["latent_roles"].tolist() == [DRAFT, COPY, DRAFT, COPY, 1]
    assert len(sample["latents"]) == 2 + 2 + 1
    messages[1]["weight"] = 0
    sample = processor.training_sample(messages)
    learnt = processor.tokenizer.convert_ids_to_tokens(sample["labels"][sample["labels"] != -100])
    assert learnt == [opens, opens, end] and sample["latent_roles"].tolist() == [0, DRAFT, COPY, 1]


def test_images_to_draw_from_can_be_dropped(make_processor):
    """What is left is the sample without them."""
    for kwargs in LAYOUTS.values():
        processor = make_processor(**kwargs)
        if processor.layout == "in_order":
            image = {"type": "image", "image": Image.new("RGB", (32, 32)), "latents": torch.zeros(8, 2, 2)}
        else:
            image = {"type": "image", "image": Image.new("RGB", (32, 32)), "latents": torch.zeros(8, 1, 2)}
        drawn = {"role": "assistant", "content": [{"type": "latents", "latents": torch.ones(8, 2, 2)}]}
        said = {"type": "text", "text": "do"}
        sample = processor.drop_images(processor.training_sample([{"role": "user", "content": [image, said]}, drawn]))
        expected = processor.training_sample([{"role": "user", "content": [said]}, drawn])
        sample.pop("latent_roles", None)
        assert sample.keys() == expected.keys()
        assert all(torch.equal(sample[key], expected[key]) for key in expected), kwargs
