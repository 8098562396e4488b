"""How evenly the routers use the experts, on request (`log_experts`)."""

import torch
from torch import nn

from .running_figures import RunningFigures


class ExpertFigures(RunningFigures):
    """
    Figures of the training batches since the last reading, of all micro-batches and ranks together. For each pool

    - `expert_load_highest` and `expert_load_lowest`: the most and the least assignments of an expert in any layer, as
      a multiple of an even share of that layer's;
    - `experts_idle`: how many experts, of all layers, got no token;
    - `router_entropy`: of a token's probabilities before the choice, in nats, averaged over tokens and layers; at most
      the logarithm of the number of experts.

    A pool without tokens has none. Adding never waits for the device; padding does not count, unless the balance loss
    counts it (`balance_padding`).

    Args:
        model (`nn.Module`): to be trained, before it is sharded.
        device (`torch.device`)
    """

    def __init__(self, model: nn.Module, device: torch.device):
        # By name, since remote code has classes of its own.
        self._model = next(m for m in model.modules() if type(m).__name__ == "RosettaForCausalLMAndImageGeneration")
        config = self._model.config
        self._loads = {
            pool: torch.zeros(config.num_hidden_layers, config.expert_pools[pool], dtype=torch.long, device=device)
            for pool in config.pools
        }
        super().__init__(means=[f"router_entropy_{pool}" for pool in config.pools], counts=[], device=device)
        self._model.model.register_forward_hook(self._add, with_kwargs=True)

    @torch.no_grad()
    def _add(self, module, args, kwargs, output):
        if not module.training:
            return
        rows = (kwargs.get("attention_mask"), kwargs.get("sequence_ids"))
        layout, router_logits = output.routing
        real_tokens = self._model._real_tokens(output.last_hidden_state, *rows, layout)
        for pool, real in real_tokens.items():
            logits = torch.stack([layer[pool] for layer in router_logits]).float()  # [layers, T, E]
            chosen = logits.topk(module.config.num_experts_per_tok).indices
            counted = real.long()[None, :, None].expand_as(chosen)
            self._loads[pool].scatter_add_(1, chosen.flatten(1), counted.flatten(1))
            log_probabilities = logits.log_softmax(-1)
            entropies = -(log_probabilities.exp() * log_probabilities).sum(-1)  # [layers, T]
            self.add_to_mean(f"router_entropy_{pool}", (entropies * real).sum(), real.sum() * len(logits))

    def read(self, accelerator) -> dict[str, float]:
        figures = super().read(accelerator)
        for pool, own in self._loads.items():
            loads = accelerator.reduce(own, reduction="sum").double()
            own.zero_()
            if loads.sum() > 0:
                shares = loads / loads.mean(-1, keepdim=True)
                figures[f"expert_load_highest_{pool}"] = shares.max().item()
                figures[f"expert_load_lowest_{pool}"] = shares.min().item()
                figures[f"experts_idle_{pool}"] = int((loads == 0).sum())
        return figures


__all__ = ["ExpertFigures"]
