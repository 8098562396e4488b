"""The losses against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from modeling_rosetta import losses_rosetta
from modeling_rosetta.losses_rosetta import cross_entropy_sum, flow_matching_sum, next_tokens
from tests.conftest import sample


@pytest.mark.parametrize("chunk", [512, 4])
def test_chunked_cross_entropy_is_cross_entropy(chunk, monkeypatch):
    monkeypatch.setattr(losses_rosetta, "TARGETS_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (2, 9), generator=generator)
    labels[:, 3:5] = -100
    loss = cross_entropy_sum(hidden, weight, labels)
    gradients = torch.autograd.grad(3 * loss, [hidden, weight])
    logits = (hidden @ weight.T)[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    for gradient, of_expected in zip(gradients, torch.autograd.grad(3 * expected, [hidden, weight]), strict=True):
        torch.testing.assert_close(gradient, of_expected)


def test_cross_entropy_of_a_frozen_head_and_without_gradients():
    hidden, weight = torch.randn(1, 6, 8, requires_grad=True), torch.randn(10, 8)
    labels = torch.arange(6)[None]
    loss = cross_entropy_sum(hidden, weight, labels)
    loss.backward()
    assert hidden.grad[:, :-1].abs().amin(-1).min() > 0 and hidden.grad[:, -1].abs().max() == 0
    with torch.no_grad():
        assert torch.equal(cross_entropy_sum(hidden, weight.requires_grad_(), labels), loss)


@pytest.mark.parametrize("autocast", [True, False])
def test_cross_entropy_in_bfloat16_is_rounded_no_more_than_its_products(autocast):
    """A mean's factor, too, must not be rounded to 8 bits before it multiplies every gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 40, 16, generator=generator), torch.randn(50, 16, generator=generator)
    hidden, weight = (tensor.bfloat16().float().requires_grad_() for tensor in (hidden, weight))
    labels = torch.randint(0, 50, (1, 40), generator=generator)
    expected = torch.autograd.grad(cross_entropy_sum(hidden, weight, labels) / 771, [hidden, weight])
    inputs = [hidden, weight] if autocast else [hidden.bfloat16(), weight.bfloat16()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = cross_entropy_sum(*inputs, labels) / 771
    assert loss.dtype == torch.float32
    for gradient, exact in zip(torch.autograd.grad(loss, [hidden, weight]), expected, strict=True):
        scale = (gradient * exact).sum() / exact.square().sum()
        assert abs(scale - 1) < 5e-4, scale
        torch.testing.assert_close(gradient, exact, rtol=0.02, atol=0.01 * float(exact.abs().max()))


@pytest.mark.parametrize("autocast", [True, False])
def test_the_heads_gradient_adds_up_in_fp32_over_the_chunks(autocast, monkeypatch):
    """In bfloat16 the error would grow with the number of chunks, here 100."""
    monkeypatch.setattr(losses_rosetta, "TARGETS_CHUNK", 40)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 4001, 16, generator=generator), torch.randn(20, 16, generator=generator)
    hidden, weight = (tensor.bfloat16().float().requires_grad_() for tensor in (hidden, weight))
    labels = torch.randint(0, 20, (1, 4001), generator=generator)
    (exact,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, labels) / 4000, [weight])
    inputs = [hidden, weight] if autocast else [hidden.bfloat16(), weight.bfloat16()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = cross_entropy_sum(*inputs, labels) / 4000
    (gradient,) = torch.autograd.grad(loss, [inputs[1]])
    assert gradient.dtype == inputs[1].dtype
    assert (gradient - exact).norm() / exact.norm() < 3e-3


def test_no_target_is_no_loss_but_a_gradient():
    hidden, weight = torch.randn(1, 4, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    loss = cross_entropy_sum(hidden, weight, torch.full((1, 4), -100))
    loss.backward()
    assert loss == 0 and weight.grad.abs().max() == 0


def test_flow_loss_is_averaged_within_each_image():
    grids = torch.tensor([[1, 2], [3, 4]])
    velocity, target = torch.randn(14, 5), torch.randn(14, 5)
    error = (velocity - target).square()
    expected = error[:2].mean() + error[2:].mean()
    torch.testing.assert_close(flow_matching_sum(velocity, target, grids), expected)


def test_loss_is_the_weighted_sum_and_counts_can_be_given(rosetta):
    batch = sample("tgtg")
    output = rosetta(**batch)
    expected = output.text_loss + output.flow_loss + 0.01 * output.aux_loss
    torch.testing.assert_close(output.loss, expected)
    halved = rosetta(**batch, num_text_targets=2 * (batch["labels"][:, 1:] != -100).sum(), num_latent_images=4)
    torch.testing.assert_close(halved.text_loss, output.text_loss / 2)
    torch.testing.assert_close(halved.flow_loss, output.flow_loss / 2)


def test_logits_are_not_computed_beside_a_loss_unless_asked_for(rosetta):
    batch = sample("t")
    assert rosetta(**batch).logits is None
    assert rosetta(**batch, logits_to_keep=0).logits.shape == (1, 4, 120)
    assert rosetta(input_ids=batch["input_ids"], logits_to_keep=2).logits.shape == (1, 2, 120)


def test_targets_aligned_with_the_logits_replace_labels(rosetta):
    """The last token of a row that goes on elsewhere has a target, too."""
    batch = sample("tutt")
    labels = batch.pop("labels")
    expected, shifted = rosetta(**batch, labels=labels).text_loss, next_tokens(labels)
    for others in ({}, {"labels": labels.flip(1)}):
        assert torch.equal(rosetta(**batch, **others, shift_labels=shifted).text_loss, expected)
    output = rosetta(**batch, shift_labels=shifted.clone().fill_(-100).index_fill_(1, torch.tensor([-1]), 7))
    logits = rosetta(**batch).logits[:, -1]
    torch.testing.assert_close(output.text_loss, F.cross_entropy(logits, torch.tensor([7])))
