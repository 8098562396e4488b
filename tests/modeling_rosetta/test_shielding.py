"""Warmup Gradient Shielding (paper, B.1): only text moves the shared expert; the forward pass is the same."""

import torch

from tests.conftest import pack, sample, tiny_model


def gradients(model, batch: dict, shield: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, shield_shared_expert=shield).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_forward_is_unchanged_and_text_gradients_are_left_alone(rosetta):
    loss, plain = gradients(rosetta, sample("t"), shield=False)
    shielded_loss, shielded = gradients(rosetta, sample("t"), shield=True)
    assert loss == shielded_loss
    assert all(torch.equal(plain[name], shielded[name]) for name in plain)


def test_images_do_not_move_the_shared_expert(rosetta):
    """Samples that are an image only: their shared expert's gradient is stopped, all of it, and only there."""
    for kinds in ("g", "u"):
        batch = sample(kinds)
        batch.pop("labels")
        if kinds == "u":
            output = rosetta(**batch, shield_shared_expert=True)
            output.logits.square().sum().backward()
            after = {n: p.grad for n, p in rosetta.named_parameters() if p.grad is not None}
        else:
            _, plain = gradients(rosetta, batch, shield=False)
            _, after = gradients(rosetta, batch, shield=True)
            assert any("shared_experts" in n and g.abs().max() > 0 for n, g in plain.items())
        assert all(g.abs().max() == 0 for n, g in after.items() if "shared_experts" in n)
        pool = "vae" if kinds == "g" else "vit"
        assert any(f"pools.{pool}.experts" in n and g.abs().max() > 0 for n, g in after.items())
        rosetta.zero_grad()


def test_text_in_a_mixed_row_still_moves_the_shared_expert_and_losses_agree(rosetta):
    batch = pack([sample("tug", 1), sample("t", 2)])
    loss, plain = gradients(rosetta, batch, shield=False)
    shielded_loss, shielded = gradients(rosetta, batch, shield=True)
    assert loss == shielded_loss
    name = "model.layers.2.mlp.shared_experts.global.down_proj.weight"
    assert shielded[name].abs().max() > 0
    assert not torch.allclose(plain[name], shielded[name])


def test_nothing_is_shielded_where_all_tokens_share_their_experts():
    """As in the authors' MoE: no new experts, nothing to warm up."""
    moe = tiny_model("moe")
    _, plain = gradients(moe, sample("tug"), shield=False)
    _, shielded = gradients(moe, sample("tug"), shield=True)
    assert all(torch.equal(plain[name], shielded[name]) for name in plain)
