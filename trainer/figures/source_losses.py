"""Losses in training, source by source."""

from collections import Counter
from pathlib import Path

import torch
from torch import nn

from modeling_rosetta.losses_rosetta import cross_entropy_sum

from .running_figures import RunningFigures


class SourceLosses(RunningFigures):
    """
    Losses of each source of a stream, in the steps after which is logged: over all its targets in all micro-batches
    and on all ranks. Text losses take one more forward pass of the head, which keeps no logits; other steps take
    nothing.

    Args:
        model (`nn.Module`): to be trained, before it is sharded.
        sources (`list[DataSource]`)
        device (`torch.device`)
    """

    def __init__(self, model: nn.Module, sources: list, device: torch.device):
        self._names = source_names(sources)
        self._sources: torch.Tensor | None = None
        kinds = [f"{name}_{kind}_loss" for name in self._names for kind in ("text", "flow")]
        super().__init__(means=kinds, counts=[], device=device)
        # By name, since remote code has classes of its own.
        whole = next(m for m in model.modules() if type(m).__name__ == "RosettaForCausalLMAndImageGeneration")
        self._head = whole.get_output_embeddings()
        whole.model.register_forward_hook(self._add_text)
        whole.register_forward_hook(self._add_flow)

    def expect(self, batch: dict[str, torch.Tensor], state):
        """
        Says what the model is about to get, and takes what the model does not know out of it.

        Args:
            batch (`dict[str, torch.Tensor]`): with `sample_sources` `(N,)`: the number of the source of each sample.
            state (`TrainerState`)
        """
        sources = batch.pop("sample_sources")
        if (state.global_step + 1) % state.logging_steps:
            return
        # Padding, whose number is -1, has the last entry.
        self._sources = torch.cat([sources, sources.new_tensor([-1])])[batch["sequence_ids"]]
        self._batch = batch

    @torch.no_grad()
    def _add_text(self, module, args, output):
        labels = None if self._sources is None else self._batch.get("labels")
        if labels is None:
            return
        hidden_states, weight = output.last_hidden_state.detach(), self._head.weight.detach()
        for number, name in enumerate(self._names):
            # The target of a position is the next one, of the same sample: the first of each has no label.
            own = labels.masked_fill(self._sources != number, -100)
            total = cross_entropy_sum(hidden_states, weight, own)
            self.add_to_mean(f"{name}_text_loss", total, (own[:, 1:] != -100).sum())

    @torch.no_grad()
    def _add_flow(self, module, args, output):
        sources, self._sources = self._sources, None
        if sources is None or output.velocity is None or self._batch.get("velocity_labels") is None:
            return
        batch, config = self._batch, module.config
        tokens = batch["latent_grid_hw"].prod(-1).to(output.velocity.device)
        weights = (1 / tokens).repeat_interleave(tokens, output_size=len(output.velocity))
        losses = (output.velocity.float() - batch["velocity_labels"].float()).square().mean(-1) * weights
        sources = sources[batch["token_type_ids"] == config.token_type_index("noisy_latents")]
        for number, name in enumerate(self._names):
            own = sources == number
            self.add_to_mean(f"{name}_flow_loss", losses[own].sum(), weights[own].sum())


def source_names(sources: list) -> list[str]:
    """Short names that differ: the task and the last part of the path, numbered where that is not enough."""
    names = [f"{source.task}_{Path(source.path).name.split('.')[0]}" for source in sources]
    total, seen = Counter(names), Counter()
    for number, name in enumerate(names):
        seen[name] += 1
        if total[name] > 1:
            names[number] = f"{name}_{seen[name]}"
    return names


__all__ = ["SourceLosses", "source_names"]
