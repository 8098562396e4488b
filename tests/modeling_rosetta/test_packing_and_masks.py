"""Who sees whom: packed samples are apart, text is causal, an image sees all of itself."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_rosetta import attention_blocks_rosetta
from modeling_rosetta.attention_blocks_rosetta import visible_blocks
from modeling_rosetta.positions_rosetta import get_rope_index
from tests.conftest import TEXT, pack, sample


@torch.no_grad()
def outputs(model, batch):
    return model(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True)


def test_packed_row_equals_its_samples_one_by_one(model):
    samples = [sample("tutg", 1), sample("t", 2), sample("ut", 3), sample("tgtg", 4)]
    packed = outputs(model, pack(samples, padding=5))
    apart = [outputs(model, s) for s in samples]
    length = packed.logits.shape[1] - 5
    torch.testing.assert_close(packed.logits[:, :length], torch.cat([o.logits for o in apart], 1), rtol=0, atol=3e-5)
    velocity = torch.cat([o.velocity for o in apart if o.velocity is not None])
    torch.testing.assert_close(packed.velocity, velocity, rtol=0, atol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_positions_that_start_anew_pack_a_row_of_text(model, attention):
    """As `DataCollatorWithFlattening` gives it; a sample of one token ends, too."""
    model.set_attn_implementation(attention)
    samples = [torch.randint(0, 110, (1, length)) for length in (5, 1, 1, 4)]
    positions = torch.cat([torch.arange(s.shape[1]) for s in samples])[None]
    together = model(torch.cat(samples, dim=1), position_ids=positions)
    padded, real = torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 5, dtype=torch.long)
    for row, mask, s in zip(padded, real, samples, strict=True):
        row[-s.shape[1] :], mask[-s.shape[1] :] = s[0], 1
    apart = model(padded, attention_mask=real).logits[real.bool()]
    torch.testing.assert_close(together.logits[0], apart, rtol=0, atol=3e-5)
    assert together.past_key_values is None  # it would not know which sample goes on
    assert model(samples[0], position_ids=torch.arange(5)[None]).past_key_values.get_seq_length() == 5


@torch.no_grad()
def test_positions_that_start_anew_pack_a_row_with_images(model):
    packed = pack([sample("ut", 1), sample("gt", 2), sample("t", 3)])
    grids = model.model.image_grids(packed["image_grid_thw"], packed["latent_grid_hw"])
    whole = get_rope_index(packed["token_type_ids"], grids)
    starts = [(packed["sequence_ids"][0] == number).nonzero()[0, 0] for number in range(3)]
    positions = torch.cat(
        [whole[..., a:b] - whole[0, 0, a] for a, b in zip(starts, [*starts[1:], None], strict=True)], -1
    )
    expected = outputs(model, packed)
    by_positions = outputs(model, {**packed, "sequence_ids": None, "position_ids": positions})
    torch.testing.assert_close(by_positions.velocity, expected.velocity, rtol=0, atol=3e-5)
    assert not torch.allclose(by_positions.logits, expected.logits)  # whose positions go on from sample to sample
    expected = outputs(model, {**packed, "position_ids": positions})
    torch.testing.assert_close(by_positions.logits, expected.logits, rtol=0, atol=1e-5)


def test_packed_losses_are_those_of_all_targets(rosetta):
    samples = [sample("tutg", 1), sample("t", 2), sample("tgtg", 4)]
    with torch.no_grad():
        packed = rosetta(**pack(samples, padding=3))
        apart = [rosetta(**s) for s in samples]
    targets = torch.tensor([(s["labels"][:, 1:] != -100).sum() for s in samples])
    text = sum(o.text_loss * n for o, n in zip(apart, targets, strict=True)) / targets.sum()
    flow = (apart[0].flow_loss + 2 * apart[2].flow_loss) / 3  # one image and two images
    torch.testing.assert_close(packed.text_loss, text)
    torch.testing.assert_close(packed.flow_loss, flow)


@pytest.mark.parametrize("kind", ["u", "g"])
def test_text_does_not_depend_on_a_later_image(model, kind):
    batch = sample(f"t{kind}t")
    changed = {k: v.clone() for k, v in batch.items()}
    changed["pixel_values" if kind == "u" else "noisy_latents"] += 1
    before, after = outputs(model, batch).logits, outputs(model, changed).logits
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-4)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_mask_is_causal_with_full_images_within_each_sample(rosetta):
    """Against the definition, position by position."""
    samples = [sample("tutg", 1), sample("uut", 2)]
    batch = pack(samples, padding=2)
    image = []  # the image of each token, None for text: neighbours of a type may be two images
    for number, (s, sizes) in enumerate(zip(samples, ([4, 6], [2, 4]), strict=True)):
        sizes = iter(sizes)
        types = s["token_type_ids"][0].tolist()
        while types:
            size = 1 if types[0] == TEXT else next(sizes)
            image += [None if types[0] == TEXT else (number, len(image))] * size
            types = types[size:]
    image += [None, None]
    sequence = batch["sequence_ids"][0].tolist()
    expected = [
        [
            sequence[q] == sequence[k] and (k <= q or (image[q] is not None and image[q] == image[k]))
            for k in range(len(image))
        ]
        for q in range(len(image))
    ]
    grids = rosetta.model.image_grids(batch["image_grid_thw"], batch["latent_grid_hw"])
    hidden_states = torch.zeros(1, len(image), 32)
    mask = rosetta.model._attention_mask(
        hidden_states, batch["token_type_ids"], None, batch["sequence_ids"], grids, None
    )
    assert torch.equal(mask[0, 0], torch.tensor(expected))


def test_padding_on_either_side_changes_nothing(model):
    batch = sample("tutg", 1)
    plain = outputs(model, batch)
    pad = torch.nn.functional.pad
    for sides in ((3, 0), (0, 3)):
        padded = dict(batch)
        padded["input_ids"] = pad(batch["input_ids"], sides, value=0)
        padded["token_type_ids"] = pad(batch["token_type_ids"], sides, value=0)
        padded["attention_mask"] = pad(torch.ones_like(batch["input_ids"]), sides, value=0)
        out = outputs(model, padded)
        real = padded["attention_mask"][0].bool()
        torch.testing.assert_close(out.logits[:, real], plain.logits, rtol=0, atol=3e-5)
        torch.testing.assert_close(out.velocity, plain.velocity, rtol=0, atol=3e-5)


def test_each_block_of_queries_keeps_the_keys_that_it_sees(monkeypatch):
    monkeypatch.setattr(attention_blocks_rosetta, "QUERIES_PER_BLOCK", 2)
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 0, 3, 2] = mask[1, 0, 2, 1] = True  # the last two queries see nothing, as padding
    assert visible_blocks(mask) == [
        (slice(0, 2), slice(0, 1)),
        (slice(2, 4), slice(1, 3)),
        (slice(4, 6), slice(0, 1)),
    ]
    assert visible_blocks(mask.float()) is None and visible_blocks(None) is None
    assert visible_blocks(mask[:, :, :2]) is None


@pytest.mark.parametrize("padding", ["packed", "left"])
def test_attention_in_blocks_is_attention(model, padding, monkeypatch):
    def trained(queries_per_block):
        monkeypatch.setattr(attention_blocks_rosetta, "QUERIES_PER_BLOCK", queries_per_block)
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        return [output.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    if padding == "packed":
        batch = pack([sample("tutg", 1), sample("t", 2), sample("ut", 3)], padding=5)
    else:
        batch = sample("tutg", 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        for key in ("input_ids", "token_type_ids", "attention_mask"):
            batch[key] = torch.nn.functional.pad(batch[key], (7, 0), value=0)
        batch["labels"] = torch.nn.functional.pad(batch["labels"], (7, 0), value=-100)
    whole = trained(1000)
    attended = []
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *args, **kwargs: attended.append(args) or attention(*args, **kwargs)
    )
    torch.testing.assert_close(trained(5), whole, rtol=1e-3, atol=1e-4)
    assert len(attended) > 2 * model.config.num_hidden_layers
