"""The authors' checkpoints to this project's, and back, in memory or tensor by tensor."""

from collections.abc import Callable, Collection

import torch

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from modeling_rosetta.latents_rosetta import LatentIn, LatentOut

from .authors_layout import (
    IGNORED,
    LATENT_PROJECTIONS,
    ROTARY,
    check_tensors,
    empty_model,
    infer_config,
    optional_shapes,
    rotary_frequencies,
    source_shape,
    source_shapes,
    sources,
)


class Conversion:
    """
    What becomes of a checkpoint of the authors': its configuration, and each of our tensors when it is read.

    Args:
        tensors (`dict[str, torch.Tensor]`): theirs; names, shapes and dtypes are looked at.
        overrides (`dict`, *optional*): fields of the configuration, nested as in config.json.
        dtype (`torch.dtype`, *optional*): of the result; by default the checkpoint's.

    Attributes:
        config ([`RosettaConfig`])
        model ([`RosettaForCausalLMAndImageGeneration`]): on the meta device.
        tensors (`dict[str, torch.Tensor]`): ours, on the meta device.
        new (`dict[str, torch.Tensor]`): the latent projections of a checkpoint from before the stage that draws.

    Raises:
        ValueError: if the checkpoint is not complete or not the authors', or an override does not fit.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], overrides: dict | None = None, dtype: torch.dtype | None = None
    ):
        self.config = infer_config(tensors, overrides)
        self.model = empty_model(self.config)
        self._sources = sources(self.config)
        new = [key for key in self._sources if key.startswith(LATENT_PROJECTIONS)]
        if any(source in tensors for key in new for source in self._sources[key]):
            new = []
        ours = self.model.state_dict()
        check_tensors(tensors, source_shapes(ours, self._sources, new), optional_shapes(self.config))
        self.new = _initialize(self.model, new)
        self.tensors = {
            key: ours[key].to(dtype or tensors["model.norm.weight" if key in new else parts[0]].dtype)
            for key, parts in self._sources.items()
        }

    def read(self, key: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """One of our tensors, from the authors' tensors that `read` gives."""
        if key in self.new:
            return self.new[key].to(self.tensors[key].dtype)
        parts = [read(source) for source in self._sources[key]]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts).view(self.tensors[key].shape)
        return tensor.to(self.tensors[key].dtype)


class Reversion:
    """
    The inverse of [`Conversion`]: each of the authors' tensors when it is read.

    Args:
        config ([`RosettaConfig`])
        tensors (`dict[str, torch.Tensor]`): ours; names, shapes and dtypes are looked at.
        new (`Collection[str]`): those of ours that the authors' checkpoint did not have.

    Attributes:
        tensors (`dict[str, torch.Tensor]`): theirs, on the meta device, sorted by name as in their files.

    Raises:
        ValueError: if the authors' layout has no place for the configuration, or the tensors do not fit it.
    """

    def __init__(self, config: RosettaConfig, tensors: dict[str, torch.Tensor], new: Collection[str] = ()):
        table, ours = sources(config), empty_model(config).state_dict()
        check_tensors(tensors, {key: tuple(ours[key].shape) for key in table}, {IGNORED: tuple(ours[IGNORED].shape)})
        self._slices, theirs = {}, {}
        for key, parts in table.items():
            for index, source in enumerate(parts if key not in new else []):
                self._slices[source] = key, index, (len(parts), *source_shape(ours[key], len(parts)))
                theirs[source] = torch.empty(self._slices[source][2][1:], dtype=tensors[key].dtype, device="meta")
        if config.token_type_index("pixel_values") is not None:
            self._rotary = rotary_frequencies(config)
            theirs[ROTARY] = self._rotary.to("meta")
        self.tensors = dict(sorted(theirs.items()))

    def read(self, key: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """One of the authors' tensors, from ours that `read` gives."""
        if key == ROTARY:
            return self._rotary
        ours, index, shape = self._slices[key]
        return read(ours).reshape(shape)[index]


def convert_state_dict(
    tensors: dict[str, torch.Tensor], overrides: dict | None = None
) -> tuple[RosettaConfig, dict[str, torch.Tensor]]:
    """
    Converts a checkpoint of the authors' in memory.

    Args:
        tensors (`dict[str, torch.Tensor]`): the authors' tensors of Rosetta, MoE or MoT, of any stage.
        overrides (`dict`, *optional*): fields of the configuration that names and shapes do not tell, nested as in
            config.json.

    Returns:
        `tuple[RosettaConfig, dict[str, torch.Tensor]]`: the configuration and what
        [`RosettaForCausalLMAndImageGeneration`] loads, in the dtypes of the checkpoint. Latent projections that a
        checkpoint from before the stage that draws does not have are newly initialised.

    Raises:
        ValueError: that lists tensors that are missing, unexpected or of a wrong shape, or names the override.
    """
    conversion = Conversion(tensors, overrides)
    converted = {key: conversion.read(key, tensors.__getitem__) for key in conversion.tensors}
    return conversion.config, {**converted, "lm_head.weight": converted["model.embed_tokens.weight"]}


def revert_state_dict(config: RosettaConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The inverse of [`convert_state_dict`]: the authors' tensors, bit for bit.

    Raises:
        ValueError: if the authors' layout has no place for the configuration, or tensors do not fit it.
    """
    reversion = Reversion(config, tensors)
    return {key: reversion.read(key, tensors.__getitem__) for key in reversion.tensors}


def _initialize(model: RosettaForCausalLMAndImageGeneration, keys: list[str]) -> dict[str, torch.Tensor]:
    """Fresh latent projections, the same ones each time."""
    if not keys:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules: dict[str, torch.nn.Module] = {
            "model.latent_in": LatentIn(model.config),
            "latent_out": LatentOut(model.config),
        }
        for module in modules.values():
            module.apply(model._init_weights)
    fresh = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    return {key: fresh[key] for key in keys}


__all__ = ["Conversion", "Reversion", "convert_state_dict", "revert_state_dict"]
