"""What a stage trains (paper, Table 3). Frozen parameters get no gradient and no optimizer state."""

import re

from torch import nn


_PROJECTOR = re.compile(r"(^|\.)visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc2\.")
_VISION = re.compile(r"(^|\.)visual\.")


def train_backbone(model: nn.Module) -> nn.Module:
    """Trains all but the ViT, of which the projectors to the model's width are trained (C.1.2 and C.1.3)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _VISION.search(name) or bool(_PROJECTOR.search(name)))
    return model


def train_projectors(model: nn.Module) -> nn.Module:
    """
    Trains nothing but the ViT's projectors: the warm-up of visual understanding (C.1.2).

    Raises:
        ValueError: if `model` has no ViT.
    """
    projectors = [bool(_PROJECTOR.search(name)) for name, _ in model.named_parameters()]
    if not any(projectors):
        raise ValueError("`model` has no ViT whose projectors could be trained; mount one first.")
    for parameter, is_projector in zip(model.parameters(), projectors, strict=True):
        parameter.requires_grad_(is_projector)
    return model


__all__ = ["train_backbone", "train_projectors"]
