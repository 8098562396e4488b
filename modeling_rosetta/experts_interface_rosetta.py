"""How experts run: as transformers runs them, but in inference on a CPU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

from .quantization_rosetta import WEIGHTS, is_packed, weight_of


class RosettaExpertsInterface(ExpertsInterface):
    """Transformers' implementations of experts, but for `"grouped_mm"`, which is [`grouped_experts_forward`]."""

    def get_interface(self, experts_implementation: str, default: Callable) -> Callable:
        if experts_implementation == "grouped_mm":
            return grouped_experts_forward
        return super().get_interface(experts_implementation, default)


def grouped_experts_forward(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """
    On a CPU grouped products are one after another anyway. In inference so is all else here, while what an expert
    makes of its tokens is in the processor's cache; with gradients and on other devices it is transformers' own.

    Args:
        experts ([`~modeling_rosetta.RosettaExperts`])
        hidden_states (`(T, D)`)
        top_k_index, top_k_weights (`(T, K)`)

    Returns:
        `torch.Tensor` of shape `(T, D)`.
    """
    # Reentrant checkpointing trains without gradients, too.
    is_inference = not (experts.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
    if not is_inference or hidden_states.device.type != "cpu":
        return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    if len(hidden_states) == 0:
        return hidden_states
    # Packed weights are unpacked as they are needed, one expert's at a time; others may be computed, for all at once.
    whole = {name: None if is_packed(experts, name) else getattr(experts, name) for name in WEIGHTS}
    parts, order = _by_expert(hidden_states, top_k_index, experts.num_experts)
    is_single, outputs = order is None, []
    for expert, tokens in parts:
        gate_up, down = (weight_of(experts, n, expert) if w is None else w[expert] for n, w in whole.items())
        gate, up = _in_halves(tokens, gate_up, is_single)
        hidden = experts.act_fn(gate).mul_(up)
        outputs.append(torch.cat(_in_halves(hidden, down, is_single), -1) if is_single else F.linear(hidden, down))
    output = torch.cat(outputs)
    if not is_single:
        output = output.index_select(0, order.argsort())
    return torch.bmm(top_k_weights[:, None], output.view(*top_k_index.shape, -1)).squeeze(1).to(hidden_states.dtype)


def _by_expert(
    hidden_states: torch.Tensor, top_k_index: torch.Tensor, num_experts: int
) -> tuple[list[tuple[int, torch.Tensor]], torch.Tensor | None]:
    """Experts with their tokens (T_expert, D), and the order (T * K,) of tokens and choices in which these stand;
    `None` for a single token."""
    if len(hidden_states) == 1:
        return [(expert, hidden_states) for expert in top_k_index[0].tolist()], None
    chosen, order = top_k_index.flatten().sort()
    sizes = torch.bincount(chosen, minlength=num_experts).tolist()
    tokens = hidden_states.index_select(0, order // top_k_index.shape[1])
    return [(expert, part) for expert, part in enumerate(tokens.split(sizes)) if len(part) > 0], order


def _in_halves(tokens: torch.Tensor, weight: torch.Tensor, is_single: bool) -> tuple[torch.Tensor, ...]:
    """`F.linear` of (T, I) in two halves (T, O / 2). MKL multiplies fp32 by a batch of the two halves of a weight
    faster than by the whole, one vector in half the time; but only that of a single token, or tokens of a batch would
    be rounded otherwise whenever their expert has no others."""
    if weight.dtype != torch.float32:
        return F.linear(tokens, weight).chunk(2, dim=-1)
    tokens, halves = tokens.expand(2, -1, -1), weight.view(2, -1, weight.shape[1])
    if is_single:
        return torch.bmm(halves, tokens.mT).mT.unbind()
    return torch.bmm(tokens, halves.mT).unbind()


__all__ = ["RosettaExpertsInterface", "grouped_experts_forward"]
