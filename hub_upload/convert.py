"""The authors' checkpoints to repositories of this project, and back."""

import functools
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, RosettaPipeline, RosettaProcessor
from modeling_rosetta.latents_rosetta import LatentIn, LatentOut
from modeling_rosetta.repository_rosetta import save_repository, staged_directory

from .authors_layout import (
    IGNORED,
    LATENT_PREFIX,
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
from .weight_files import open_weights, parse_hub_source, write_weights


logger = logging.get_logger(__name__)

# Pixels of an image to understand in the authors' inference.
IMAGE_SIZE = {"shortest_edge": 512 * 512, "longest_edge": 2048 * 2048}
NEW = "newly_initialized"  # metadata of our files: tensors that the authors' checkpoint did not have


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


def convert(
    source: str | Path,
    target: str | Path,
    tokenizer: str | Path,
    vae: str | Path | None = None,
    image_processor: str | Path | None = None,
    overrides: dict | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    check_finite: bool = False,
):
    """
    Converts a checkpoint of the authors' to the repository that transformers and diffusers load. Holds one shard of
    the weights in memory. An error or an interruption leaves `target` as it was.

    Args:
        source (`str` or `Path`): their safetensors: a file, a folder, or `owner/name[/path][@revision]` on the Hub.
        target (`str` or `Path`): folder of the new repository.
        tokenizer (`str` or `Path`): folder or Hub id of their tokenizer.
        vae (`str` or `Path`, *optional*): diffusers folder or Hub id of the FLUX.2 VAE, or of a pipeline with one in
            `vae/`; needed if the checkpoint draws.
        image_processor (`str` or `Path`, *optional*): folder or Hub id of an image processor for the ViT; by default
            Qwen3-VL's with the authors' image sizes.
        overrides (`dict`, *optional*): fields of the configuration that names and shapes do not tell, nested as in
            config.json.
        dtype (`torch.dtype`, *optional*): of the weights; by default the checkpoint's.
        max_shard_size (`int` or `str`): the most bytes of a file of weights.
        check_finite (`bool`): refuse weights that are infinite or not a number.

    Raises:
        ValueError: before anything is written, if files are missing or damaged, tensors are missing, unexpected or of
            a wrong shape, or the parts do not fit together; while writing, if `check_finite` finds something.
    """
    files = open_weights(source)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    conversion = Conversion(files.tensors, _token_fields(tokenizer, files.tensors) | (overrides or {}), dtype)
    if len(tokenizer) > conversion.config.vocab_size:
        raise ValueError(
            f"`tokenizer` has {len(tokenizer)} tokens, more than the {conversion.config.vocab_size} that the "
            "checkpoint has embeddings for."
        )
    pipeline = RosettaPipeline(
        conversion.model,
        _load_vae(vae, conversion.config),
        FlowMatchEulerDiscreteScheduler(),
        _processor(tokenizer, _load_image_processor(image_processor, conversion.config), conversion.config),
    )
    conversion.model.generation_config = GenerationConfig.from_model_config(conversion.config)
    conversion.model.generation_config.pad_token_id = tokenizer.pad_token_id
    if dtypes := {str(tensor.dtype).removeprefix("torch.") for tensor in conversion.tensors.values()}:
        conversion.config.dtype = max(dtypes)  # float32 rather than bfloat16

    def read(key: str) -> torch.Tensor:
        tensor = conversion.read(key, files.read)
        if check_finite and not tensor.isfinite().all():
            raise ValueError(f"`source`: the weights of '{key}' are not all finite.")
        return tensor

    metadata = {NEW: json.dumps(list(conversion.new))} if conversion.new else None
    if conversion.new:
        logger.warning(f"The checkpoint does not draw yet: {list(conversion.new)} are newly initialised.")
    if IGNORED in files.tensors:
        logger.warning(f"`{IGNORED}` is left out, as the authors' code does: the head is tied to the embedding.")
    save_repository(
        pipeline,
        target,
        write_weights=lambda folder: write_weights(folder, conversion.tensors, read, max_shard_size, metadata),
    )


def revert(source: str | Path, target: str | Path, max_shard_size: int | str = "5GB"):
    """
    Writes the weights of a repository in the authors' layout, as their scripts do: safetensors, an index, and an empty
    config.json. A checkpoint that was converted without a change of its dtype comes back bit for bit.

    Args:
        source (`str` or `Path`): folder, or `owner/name[@revision]` on the Hub.
        target (`str` or `Path`): the folder to write.
        max_shard_size (`int` or `str`): the most bytes of a file of weights.

    Raises:
        ValueError: before anything is written, if the source is damaged, or the authors' layout has no place for it.
    """
    if Path(source).is_dir():
        config = RosettaConfig.from_pretrained(source)
    else:
        repo_id, _, revision = parse_hub_source(str(source))
        config = RosettaConfig.from_pretrained(repo_id, revision=revision)
    files = open_weights(source)
    reversion = Reversion(config, files.tensors, new=json.loads(files.metadata.get(NEW, "[]")))
    read_ours = functools.lru_cache(maxsize=8)(files.read)  # the experts of a layer are read one by one
    with staged_directory(target) as folder:
        write_weights(folder, reversion.tensors, lambda key: reversion.read(key, read_ours).clone(), max_shard_size)
        (folder / "config.json").write_text("{}")


def _initialize(model: RosettaForCausalLMAndImageGeneration, keys: list[str]) -> dict[str, torch.Tensor]:
    """Fresh latent projections, the same ones each time."""
    if not keys:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = {"model.latent_in": LatentIn(model.config), "latent_out": LatentOut(model.config)}
        for module in modules.values():
            module.apply(model._init_weights)
    fresh = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    return {key: fresh[key] for key in keys}


def _token_fields(tokenizer, tensors: dict[str, torch.Tensor]) -> dict:
    """What the configuration says of the tokenizer."""
    names = {
        "image_token_id": "<|image_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    if "timestep_emb.mlp.0.weight" in tensors:
        names["timestep_token_id"] = "<｜timestep｜>"
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in names.items()}
    # The authors end a text at either of these.
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    if missing := [names[field] for field, token_id in ids.items() if token_id in (None, tokenizer.unk_token_id)]:
        raise ValueError(f"`tokenizer` lacks the special tokens {missing}.")
    return {**ids, "eos_token_id": [token_id for token_id in ends if token_id is not None]}


def _load_vae(vae: str | Path | None, config: RosettaConfig) -> AutoencoderKLFlux2 | None:
    if config.token_type_index("noisy_latents") is None:
        return None
    if vae is None:
        raise ValueError(
            "`vae` must be given, since the checkpoint draws: a diffusers folder or Hub id of the FLUX.2 VAE."
        )
    try:
        return AutoencoderKLFlux2.from_pretrained(vae)
    except OSError:
        return AutoencoderKLFlux2.from_pretrained(vae, subfolder="vae")


def _load_image_processor(image_processor: str | Path | None, config: RosettaConfig) -> Qwen2VLImageProcessorPil:
    if image_processor is not None:
        return Qwen2VLImageProcessorPil.from_pretrained(image_processor)
    vision = config.vision_config
    return Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        size=IMAGE_SIZE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _processor(tokenizer, image_processor: Qwen2VLImageProcessorPil, config: RosettaConfig) -> RosettaProcessor:
    """With the tokens before an image to draw if the checkpoint was made for inference."""
    names = [token_type["name"] for token_type in config.token_types]
    sizes = sorted(int(m[1]) for m in map(re.compile(r"<｜img_size_(\d+)｜>").fullmatch, tokenizer.get_vocab()) if m)
    return RosettaProcessor(
        image_processor,
        tokenizer,
        embeds_from=[token_type["embeds_from"] for token_type in config.token_types],
        base_size=256 if 256 in sizes or not sizes else sizes[0],  # 256 is the release's
        latent_prefix=config.timestep_token_id is not None,
        latent_prefix_type=names.index(LATENT_PREFIX) if LATENT_PREFIX in names else 0,
    )


__all__ = ["convert", "convert_state_dict", "revert", "revert_state_dict"]
