"""The terms of the training objective (paper, C.1) and the routing figures that go with them."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# Targets whose logits are held at a time: 315 MB in fp32 at a vocabulary of 157,420.
TARGETS_CHUNK = 512


class LinearCrossEntropy(torch.autograd.Function):
    """
    Cross-entropy of the logits `hidden_states @ weight.T`, summed over the targets. The logits of one chunk of targets
    exist at a time, in fp32, and become their own gradient: what the backward pass needs is computed on the way.

    Args:
        hidden_states (`torch.Tensor` of shape `(N, D)`)
        weight (`torch.Tensor` of shape `(V, D)`)
        targets (`torch.LongTensor` of shape `(N,)`)
    """

    @staticmethod
    def forward(ctx, hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        hidden_gradient = torch.zeros_like(hidden_states) if needs_hidden else None
        # Added up over the chunks, the error of a sum in 16 bits would grow with the number of targets.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        loss = torch.zeros((), device=hidden_states.device)
        for start in range(0, len(targets), TARGETS_CHUNK):
            chunk = slice(start, start + TARGETS_CHUNK)
            hidden, target = hidden_states[chunk], targets[chunk, None]
            log_probabilities = F.linear(hidden, weight).float().log_softmax(-1)
            loss -= log_probabilities.gather(1, target).sum()

            gradient = log_probabilities.exp_()  # softmax - one-hot
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
            gradient = gradient.to(weight.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[chunk])
            if weight_gradient is not None:
                if weight.dtype == torch.float32:
                    weight_gradient.addmm_(gradient.T, hidden)
                else:
                    weight_gradient += gradient.T @ hidden
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient: torch.Tensor):
        # With a shape, the factor is not rounded to the gradients' precision.
        factor = loss_gradient[None]
        gradients = [g if g is None else torch.mul(g, factor, out=torch.empty_like(g)) for g in ctx.saved_tensors]
        return *gradients, None


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Labels (B, S) aligned with the input ids to the targets (B, S) at each position: the label after it."""
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def cross_entropy_sum(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[`target_cross_entropy_sum`] of the next token; `labels` (B, S) are aligned with the input ids."""
    return target_cross_entropy_sum(hidden_states, weight, next_tokens(labels))


def target_cross_entropy_sum(hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy, summed over the targets, without ever holding all logits; see [`LinearCrossEntropy`].

    Args:
        hidden_states (`torch.Tensor` of shape `(B, S, D)`): after the final norm.
        weight (`torch.Tensor` of shape `(V, D)`): of the language model head.
        targets (`torch.LongTensor` of shape `(B, S)`): what to predict at each position, -100 for nothing.
    """
    kept = targets != -100
    hidden_states, targets = hidden_states[kept], targets[kept]
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():
        hidden_states, weight = hidden_states.detach(), weight.detach()
    return LinearCrossEntropy.apply(hidden_states, weight, targets)


def flow_matching_sum(
    velocity: torch.Tensor,
    velocity_labels: torch.Tensor,
    latent_grid_hw: torch.Tensor,
    is_target: torch.Tensor | None = None,
):
    """
    Squared error of the velocity, averaged within each image and summed over the images.

    Args:
        velocity, velocity_labels (`torch.Tensor` of shape `(L, C)`)
        latent_grid_hw (`torch.LongTensor` of shape `(I, 2)`)
        is_target (`torch.BoolTensor` of shape `(I,)`, *optional*): which images count; default to all.
    """
    tokens_per_image = latent_grid_hw.prod(-1).to(velocity.device)
    share = 1 / tokens_per_image if is_target is None else is_target.to(velocity.device) / tokens_per_image
    weight = share.repeat_interleave(tokens_per_image, output_size=len(velocity))
    return ((velocity.float() - velocity_labels.float()).square().mean(-1) * weight).sum()


def feature_flow_sum(velocity: torch.Tensor, velocity_labels: torch.Tensor) -> torch.Tensor:
    """Squared error of the velocity `(L, C)` of a user's features, averaged over the channels, summed over tokens."""
    return (velocity.float() - velocity_labels.float()).square().mean(-1).sum()


def routing_losses(
    router_logits: tuple[dict[str, torch.Tensor], ...],
    real_tokens: dict[str, torch.Tensor],
    streams: dict[str, list[str]],
    top_k: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Balance loss and capacity rate.

    A pool of E experts has the balance loss E * sum_e(f_e * P_e), where f_e is the fraction of the assignments that
    expert e gets and P_e its mean probability; it is 1 if all is even. In each attention stream the pools that got
    tokens are averaged; streams and layers are summed, as the authors do. The capacity rate is the share of
    assignments that would fit if each expert took at most its even share of them, or 4 (capacity factor 1.0;
    nothing is dropped).

    Args:
        router_logits: for each layer and pool, logits `(T_pool, E)`.
        real_tokens: for each pool, which of its tokens count, `(T_pool,)`.
        streams: for each attention stream, its pools.
        top_k (`int`): experts a token is routed to.

    Returns:
        The balance loss, and for each pool its capacity rate, averaged over the layers (NaN for a pool without
        tokens); all scalars on the device.
    """
    pool_loss, present, capacity_rate = {}, {}, {}
    for pool, real in real_tokens.items():
        logits = torch.stack([layer[pool] for layer in router_logits])  # [layers, T, E]
        num_experts, count = logits.shape[-1], real.sum()
        with torch.no_grad():
            chosen = logits.topk(top_k, dim=-1).indices
            assigned = (F.one_hot(chosen, num_experts).sum(2) * real[:, None]).sum(1).float()  # [layers, E]
            capacity = (count * top_k / num_experts).floor().clamp(min=4)
            capacity_rate[pool] = assigned.clamp(max=capacity).sum() / (len(router_logits) * count * top_k)
        fraction = assigned / (count * top_k).clamp(min=1)
        mean_probability = (logits.softmax(-1) * real[:, None]).sum(1) / count.clamp(min=1)
        pool_loss[pool] = num_experts * (fraction * mean_probability).sum()  # zero for a pool without tokens
        present[pool] = (count > 0).float()
    balance_loss = sum(
        sum(pool_loss[pool] for pool in pools) / sum(present[pool] for pool in pools).clamp(min=1)
        for pools in streams.values()
    )
    return balance_loss, capacity_rate


__all__ = [
    "cross_entropy_sum",
    "feature_flow_sum",
    "flow_matching_sum",
    "next_tokens",
    "routing_losses",
    "target_cross_entropy_sum",
]
