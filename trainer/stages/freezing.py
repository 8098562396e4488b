"""What a stage trains (paper, Table 3). Frozen parameters get no gradient and no optimizer state."""

import re
from collections.abc import Callable

from torch import nn

from modeling_rosetta.composition_rosetta import own_modules


_PROJECTOR = re.compile(r"(^|\.)visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc2\.")
_VISION = re.compile(r"(^|\.)visual\.")


def train_backbone(model: nn.Module) -> nn.Module:
    """Trains all but the ViT, of which the projectors to the model's width are trained (C.1.2 and C.1.3)."""
    return _train(model, lambda name: True)


def train_projectors(model: nn.Module) -> nn.Module:
    """
    Trains nothing but the ViT's projectors: the warm-up of visual understanding (C.1.2).

    Raises:
        ValueError: if `model` has no ViT.
    """
    if not any(_PROJECTOR.search(name) for name, _ in model.named_parameters()):
        raise ValueError("`model` has no ViT whose projectors could be trained; mount one first.")
    return _train(model, lambda name: bool(_PROJECTOR.search(name)))


def train_token_types(model: nn.Module, names: str | list[str]) -> nn.Module:
    """
    Trains nothing but what serves these token types and no others: their routers and experts, what embeds them, and
    their velocity head; of a ViT the projectors. All other token types stay as they are, bit for bit.

    Args:
        model (`RosettaForCausalLMAndImageGeneration`)
        names (`str` or `list[str]`): e.g. the type that was just mounted.

    Raises:
        ValueError: if there is no such token type, or nothing serves these types only.
    """
    own = tuple(f"{module}." for module in own_modules(model.config, names))
    if not any(name.startswith(own) for name, _ in model.named_parameters()):
        raise ValueError(f"`names`: {names} have no parameters of their own in this model, or it is wrapped.")
    return _train(model, lambda name: name.startswith(own))


def _train(model: nn.Module, chosen: Callable[[str], bool]) -> nn.Module:
    for name, parameter in model.named_parameters():
        is_frozen_vision = _VISION.search(name) and not _PROJECTOR.search(name)
        parameter.requires_grad_(chosen(name) and not is_frozen_vision)
        if not parameter.requires_grad:
            parameter.grad = None  # which an earlier stage may have left
    return model


__all__ = ["train_backbone", "train_projectors", "train_token_types"]
