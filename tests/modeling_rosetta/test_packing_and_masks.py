"""Who sees whom: packed samples are apart, text is causal, an image sees all of itself."""

import pytest
import torch

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
