"""What a stage of pretraining starts from: an upcycled model or the last stage's, with what its data need mounted."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file

from modeling_rosetta import (
    RosettaConfig,
    RosettaForCausalLMAndImageGeneration,
    RosettaProcessor,
    mount,
    text_config_from_dense,
    upcycle,
)
from modeling_rosetta.text_processor_rosetta import (
    check_tokenizer,
    load_dense_tokenizer,
    text_processor,
    token_fields,
)

from .repository import write_repository
from .training_record import load_training_record, save_training_record
from .vision_tower import load_vision_tower


ARCHITECTURES: dict[str, Callable[..., RosettaConfig]] = {
    "rosetta": RosettaConfig,
    "moe": RosettaConfig.moe,
    "mot": RosettaConfig.mot,
}
TOKEN_TYPES_OF_TASK = {"lm": ("text",), "mmu": ("text", "vit"), "t2i": ("text", "vae")}


def missing_token_types(stage, tasks: set[str]) -> list[str]:
    """
    The token types that the tasks need and `stage.model` lacks; a dense model lacks `"text"` as well, for which it is
    upcycled. Reads configurations and the tokenizer only.

    Args:
        stage ([`StageArguments`])
        tasks (`set[str]`): among `"lm"`, `"mmu"` and `"t2i"`.

    Raises:
        ValueError: if the model is neither a dense Qwen3 nor a Rosetta, is of another architecture, has no tokenizer
            that reads words, or what a missing type is made of is missing too.
        OSError: if there is no such model, processor, vision tower or VAE.
    """
    fields = configuration("model", stage.model)
    kind = fields.get("model_type")
    if kind not in ("qwen3", "rosetta"):
        raise ValueError(f"`model` must be a dense Qwen3 or a Rosetta, '{stage.model}' is of type '{kind}'.")
    _check_words(stage.model, kind, fields["vocab_size"])
    target = {token_type["name"]: token_type for token_type in ARCHITECTURES[stage.architecture]().token_types}
    present = {token_type["name"]: token_type for token_type in fields.get("token_types", [])}
    for name in present.keys() & target.keys():
        if present[name] != target[name]:
            raise ValueError(
                f"`architecture` is '{stage.architecture}', but '{stage.model}' is of another one: '{name}' is "
                f"{present[name]} there, and should be {target[name]}."
            )
    needed = {name for task in tasks for name in TOKEN_TYPES_OF_TASK[task]}
    missing = [name for name in target if name in needed and name not in present]
    if "vit" in missing and stage.vision_tower is None:
        raise ValueError(
            f"`vision_tower` must be given: `data` has images to understand, and '{stage.model}' has no ViT. Give one "
            "to mount, or start from a model that has it."
        )
    if "vae" in needed and stage.vae is None:
        raise ValueError("`vae` must be given: `data` has images to draw.")
    if stage.train == "projectors" and "vit" not in {*present, *missing}:
        raise ValueError(f"`train` is 'projectors', but '{stage.model}' has no ViT, and `data` ask for none.")
    if "vit" in missing:
        configuration("vision_tower", stage.vision_tower)
    if "vae" in needed:
        configuration("vae", stage.vae, subfolder="vae")
    return missing


def write_starting_point(folder: str | os.PathLike, stage, missing: list[str]):
    """
    Upcycles a dense model (paper, A.3), mounts token types (C.1.2, C.1.3), and writes the result with its processor
    and the earlier stages' record: all of it or nothing.

    Args:
        folder (`str` or `os.PathLike`)
        stage ([`StageArguments`])
        missing (`list[str]`): of [`missing_token_types`].

    Raises:
        ValueError: if the parts do not fit together.
        OSError: if a part is not there.
    """
    target, processor = ARCHITECTURES[stage.architecture](), stage_processor(stage, missing)
    if "text" in missing:
        model = upcycle(stage.model, _text_config(stage, target, processor), torch.float32)
    else:
        model = RosettaForCausalLMAndImageGeneration.from_pretrained(stage.model, dtype=torch.float32)
    for token_type in target.token_types[1:]:
        if token_type["name"] not in missing:
            continue
        if token_type["name"] == "vit":
            parts = {"vision_tower": load_vision_tower(stage.vision_tower, model.config.hidden_size)}
        else:
            vae = configuration("vae", stage.vae, subfolder="vae")
            parts = {
                "latent_channels": vae["latent_channels"] * math.prod(vae["patch_size"]),
                "latent_hidden_size": model.config.hidden_size,
            }
        pool = token_type["expert_pool"]
        is_new = pool not in model.config.expert_pools
        mount(model, token_type, num_experts=target.expert_pools[pool] if is_new else None, **parts)
    processor.set_token_types(model.config)  # checks the size of the vocabulary
    write_repository(folder, model, processor)
    if stages := load_training_record(stage.model):
        save_training_record(folder, stages)


def stage_processor(stage, missing: list[str]) -> RosettaProcessor:
    """
    The processor of what a stage starts from; no weights are read.

    Args: as for [`write_starting_point`].

    Raises:
        OSError: if a part is not there.
    """
    if "text" in missing:
        processor = text_processor(AutoTokenizer.from_pretrained(stage.model))
    else:
        processor = RosettaProcessor.from_pretrained(stage.model, trust_remote_code=True)
    changes = layout_changes(stage)
    if "vit" in missing:
        changes["image_processor"] = _image_processor(stage)
    if "vae" in missing:
        vae = configuration("vae", stage.vae, subfolder="vae")
        changes["latent_patch_size"] = 2 ** (len(vae["block_out_channels"]) - 1) * vae["patch_size"][0]
        changes["base_size"] = stage.base_size
    mounted = ARCHITECTURES[stage.architecture]().token_types[1:]
    sources = [token_type["embeds_from"] for token_type in mounted if token_type["name"] in missing]
    return _changed(processor, embeds_from=[*processor.embeds_from, *sources], **changes)


def layout_changes(stage) -> dict:
    """The attributes of the processor that a stage sets."""
    return {name: value for name in ("layout", "image_embeds_from") if (value := getattr(stage, name)) is not None}


def configuration(argument: str, name_or_path: str, subfolder: str = "") -> dict:
    """The fields of a config.json; its absence is an error that names the argument, as the libraries' does not."""
    try:
        file = cached_file(name_or_path, "config.json", subfolder=subfolder)
    except OSError as error:
        raise OSError(f"`{argument}`: '{name_or_path}' cannot be read. {error}") from error
    if file is None:
        raise OSError(f"`{argument}`: there is no {Path(subfolder, 'config.json')} in '{name_or_path}'.")
    return json.loads(Path(file).read_text())


def _check_words(model: str, kind: str, vocab_size: int):
    try:
        if kind == "qwen3":
            load_dense_tokenizer(model, vocab_size)
        else:
            check_tokenizer(_processor(model).tokenizer, vocab_size, model)
    except (OSError, ValueError) as error:
        raise type(error)(f"`model`: {error}") from error


def _processor(model: str) -> RosettaProcessor:
    try:
        return RosettaProcessor.from_pretrained(model, trust_remote_code=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"'{model}' has no processor with a tokenizer that can be read. {reason}") from error


def _text_config(stage, target: RosettaConfig, processor: RosettaProcessor) -> RosettaConfig:
    dense, text = AutoConfig.from_pretrained(stage.model), target.token_types[0]
    return text_config_from_dense(
        dense,
        token_types=[text],
        expert_pools={text["expert_pool"]: target.expert_pools[text["expert_pool"]]},
        vocab_size=stage.vocab_size or max(dense.vocab_size, len(processor.tokenizer)),
        **token_fields(processor),
    )


def _image_processor(stage) -> Qwen2VLImageProcessorPil:
    limits = {}
    if stage.image_pixels is not None:
        limits["size"] = dict(zip(("shortest_edge", "longest_edge"), stage.image_pixels, strict=True))
    return Qwen2VLImageProcessorPil.from_pretrained(stage.vision_tower, **limits)


def _changed(processor: RosettaProcessor, **changes) -> RosettaProcessor:
    names = "image_processor tokenizer chat_template embeds_from base_size latent_patch_size latent_prefix"
    names += " latent_prefix_type layout image_embeds_from"
    kept = {name: getattr(processor, name) for name in names.split()}
    return RosettaProcessor(**{**kept, **changes})


__all__ = ["ARCHITECTURES", "layout_changes", "missing_token_types", "stage_processor", "write_starting_point"]
