"""What a run logs of its batches: each loss, each pool's capacity rate, and the counts behind them."""

import torch

from ..flow_matching import generated_feature_keys
from .batch_counts import count_batch
from .running_figures import RunningFigures


# Of no interest but for the share of the peak.
UNSEEN_UNITS = ("attention_pairs", "vit_pairs")


class TrainingFigures(RunningFigures):
    """
    The [`RunningFigures`] of a model's batches.

    Args:
        config (`RosettaConfig`)
        device (`torch.device`)

    Attributes:
        targets (`list[str]`): the counts of what is to be predicted.
    """

    def __init__(self, config, device: torch.device):
        self._features = list(generated_feature_keys(config))
        self._types = [token_type["name"] for token_type in config.token_types]
        losses = ["loss", "text_loss", "flow_loss", "aux_loss", *(f"{name}_loss" for name in self._features)]
        held = [f"num_{what}_{name}" for what in ("samples", "tokens") for name in self._types]
        targets = ["num_text_targets", "num_latent_images", *(f"num_{name}_targets" for name in self._features)]
        self._num_seen = torch.zeros((), dtype=torch.long, device=device)  # targets, of all ranks
        super().__init__(
            means=[*losses, *(f"capacity_rate_{pool}" for pool in config.pools)],
            counts=["num_samples", *held, *targets, *UNSEEN_UNITS],
            device=device,
        )

    @torch.no_grad()
    def add_batch(self, batch: dict, outputs, own_counts: torch.Tensor, counts: torch.Tensor):
        """
        Args:
            batch (`dict[str, torch.Tensor]`): as the collator made it.
            outputs ([`RosettaOutput`]): of the model, for this batch.
            own_counts (`torch.LongTensor` of shape `(2 + F,)`): [`count_targets`] of this batch.
            counts (`torch.LongTensor` of shape `(2 + F,)`): by which the model divided its losses.
        """
        losses = (outputs.text_loss, outputs.flow_loss, *(outputs.feature_losses.get(name) for name in self._features))
        names = ("text_loss", "flow_loss", *(f"{name}_loss" for name in self._features))
        for name, loss, count, own_count in zip(names, losses, counts, own_counts, strict=True):
            if loss is not None:
                self.add_to_mean(name, loss * count.clamp(min=1), own_count)
        self.add_to_mean("aux_loss", outputs.aux_loss)
        for pool, rate in outputs.capacity_rate.items():
            self.add_to_mean(f"capacity_rate_{pool}", rate)
        held = count_batch(batch, len(self._types))
        self.add_to_count("num_samples", held.samples)
        for name, tokens, samples in zip(self._types, held.tokens, held.samples_with, strict=True):
            self.add_to_count(f"num_tokens_{name}", tokens)
            self.add_to_count(f"num_samples_{name}", samples)
        self.add_to_count("attention_pairs", held.attention_pairs)
        self.add_to_count("vit_pairs", held.vit_pairs)
        self.add_to_count("num_text_targets", own_counts[0])
        self.add_to_count("num_latent_images", own_counts[1])
        for name, own_count in zip(self._features, own_counts[2:], strict=True):
            self.add_to_count(f"num_{name}_targets", own_count)
        self._num_seen += counts.sum()

    def go_on(self):
        """Says that the steps so far had targets, without which they would not have been saved."""
        self._num_seen += 1

    def check_targets(self):
        """
        Waits for the device.

        Raises:
            ValueError: if nothing so far was to be predicted.
        """
        if self._num_seen == 0:
            raise ValueError("`train_dataset`: no sample so far has a target, so there is nothing to train on.")


__all__ = ["UNSEEN_UNITS", "TrainingFigures"]
