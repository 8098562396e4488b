"""What an evaluation reports: figures of all its samples, however they were batched."""

import torch
import torch.nn.functional as F

from .training_figures import UNSEEN_UNITS, TrainingFigures


class EvaluationFigures(TrainingFigures):
    """
    The [`TrainingFigures`] of a set of samples as a whole. Losses are means over their targets, and the balance loss
    is that of all tokens together, which the mean over batches is not; `loss` is their sum, weighted as in the model.

    Args:
        config (`RosettaConfig`)
        device (`torch.device`)
    """

    def __init__(self, config, device: torch.device):
        super().__init__(config, device)
        self._config = config
        # Of each layer and expert: the tokens that it was chosen for, and its probabilities, added up.
        self._routing = {
            pool: torch.zeros(2, config.num_hidden_layers, config.expert_pools[pool], device=device)
            for pool in config.pools
        }
        self._routed = {pool: torch.zeros((), device=device) for pool in config.pools}

    @torch.no_grad()
    def add_batch(self, batch: dict, outputs, own_counts: torch.Tensor, counts: torch.Tensor):
        """As in training; `outputs` must have `router_logits`."""
        super().add_batch(batch, outputs, own_counts, counts)
        types = batch.get("token_type_ids")
        types = torch.zeros_like(batch["input_ids"]) if types is None else types
        is_real = self._is_real(batch).flatten()
        for pool, routing in self._routing.items():
            of_pool = [i for i, t in enumerate(self._config.token_types) if t["expert_pool"] == pool]
            in_pool = torch.isin(types, torch.tensor(of_pool, device=types.device)).flatten()
            logits = torch.stack([layer[pool] for layer in outputs.router_logits])[:, is_real[in_pool]]
            chosen = logits.topk(self._config.num_experts_per_tok).indices
            routing[0] += F.one_hot(chosen, logits.shape[-1]).sum((1, 2))
            routing[1] += logits.softmax(-1).sum(1)
            self._routed[pool] += logits.shape[1]

    def read(self, accelerator) -> dict[str, float]:
        figures = {name: figure for name, figure in super().read(accelerator).items() if name not in UNSEEN_UNITS}
        figures["aux_loss"] = self._balance_loss(accelerator)
        drawing = sum(figures.get(f"{name}_loss", 0.0) for name in ("flow", *self._features))
        figures["loss"] = (
            figures.get("text_loss", 0.0)
            + self._config.flow_loss_coef * drawing
            + self._config.router_aux_loss_coef * figures["aux_loss"]
        )
        return figures

    def _is_real(self, batch: dict) -> torch.Tensor:
        sequence_ids, mask = batch.get("sequence_ids"), batch.get("attention_mask")
        if not self._config.balance_padding and sequence_ids is not None:
            return sequence_ids >= 0
        if not self._config.balance_padding and mask is not None and mask.ndim == 2:
            return mask.bool()
        return torch.ones_like(batch["input_ids"], dtype=torch.bool)

    def _balance_loss(self, accelerator) -> float:
        """As in `routing_losses`, of the sums over all batches and ranks."""
        losses = {}
        for pool, routing in self._routing.items():
            assigned, probability = accelerator.reduce(routing, reduction="sum")
            count = accelerator.reduce(self._routed[pool], reduction="sum")
            if count > 0:
                fraction = assigned / (count * self._config.num_experts_per_tok)
                losses[pool] = (routing.shape[-1] * (fraction * probability / count).sum()).item()
            routing.zero_()
            self._routed[pool].zero_()
        streams = (
            [losses[pool] for pool in pools if pool in losses] for pools in self._config.pools_of_stream.values()
        )
        return sum(sum(present) / len(present) for present in streams if present)


__all__ = ["EvaluationFigures"]
