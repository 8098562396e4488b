"""
The repository: one folder, with one copy of the weights, for transformers and diffusers alike.

    config.json, model*.safetensors, processor_config.json, tokenizer*, *.py       transformers' layout, at the root
    model_index.json, pipeline.py, vae/, scheduler/                                diffusers' layout
    transformer/repository_rosetta.py, processor/repository_rosetta.py             from diffusers' layout to the root
"""

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save


# What the model and processor do not bring.
CODE = (
    "pipeline.py",
    "adapters_rosetta.py",
    "answering_rosetta.py",
    "drawing_checks_rosetta.py",
    "drawing_steps_rosetta.py",
    "flow_scheduler_rosetta.py",
    "guidance_rosetta.py",
    "latent_codec_rosetta.py",
    "prompts_rosetta.py",
    "repository_rosetta.py",
    "source_images_rosetta.py",
    "step_cache_rosetta.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_rosetta.RosettaConfig",
    "AutoModel": "modeling_rosetta.RosettaModel",
    "AutoModelForCausalLM": "modeling_rosetta.RosettaForCausalLMAndImageGeneration",
    "AutoModelForImageTextToText": "modeling_rosetta.RosettaForCausalLMAndImageGeneration",
    "AutoModelForMultimodalLM": "modeling_rosetta.RosettaForCausalLMAndImageGeneration",
    "AutoProcessor": "processing_rosetta.RosettaProcessor",
}
MODEL = AUTO_MAP["AutoModelForCausalLM"].split(".")[-1]
ADAPTER = "adapter_config.json"
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


class RootModel(PreTrainedModel):
    """What diffusers loads as `transformer/`: the model one folder up."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs) -> PreTrainedModel:
        if kwargs.pop("variant", None) is not None:
            raise ValueError("`variant` must be None: a repository holds one copy of the weights; see `torch_dtype`.")
        # To run this code, its user has already set `trust_remote_code`.
        return AutoModelForCausalLM.from_pretrained(Path(folder).parent, trust_remote_code=True, **kwargs)


class RootProcessor(ProcessorMixin):
    """What diffusers loads as `processor/`: the processor one folder up."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs) -> ProcessorMixin:
        return AutoProcessor.from_pretrained(Path(folder).parent, trust_remote_code=True, **kwargs)


def save_repository(
    pipeline,
    directory: str | os.PathLike,
    max_shard_size: int | str | None = None,
    write_weights: Callable[[Path], None] | None = None,
):
    """
    Saves the parts of a pipeline and the code they run on. Files of `directory` that a repository does not have, such
    as a model card, stay.

    Args:
        pipeline ([`RosettaPipeline`])
        directory (`str` or `os.PathLike`)
        max_shard_size (`int` or `str`, *optional*): the most bytes of a file of weights, e.g. `"5GB"`.
        write_weights (`Callable[[Path], None]`, *optional*): writes the weights into the folder that has all else, in
            place of those of the transformer, which may then be on the meta device.

    Raises:
        ValueError: before anything is written, if a part is missing, or its weights are not all there and its own, as
            with adapters of peft, on the meta device or in shards; or if `directory` is a file or holds an adapter.
    """
    parts = {name: _unwrapped(getattr(pipeline, name)) for name in ("transformer", "processor", "scheduler", "vae")}
    for name in ("transformer", "processor", "scheduler"):
        if parts[name] is None:
            raise ValueError(f"`{name}` must be part of the pipeline to be saved with it, it is None.")
    for name in ("scheduler", "vae"):
        if parts[name] is not None and getattr(diffusers, type(parts[name]).__name__, None) is not type(parts[name]):
            raise ValueError(
                f"`{name}` must be of a class of diffusers, with which the repository is loaded, got "
                f"{type(parts[name]).__name__}."
            )
    vae = parts["vae"]
    if vae is not None:
        _check_weights("vae", vae, vae.state_dict(), lambda: type(vae).from_config(vae.config))
    weights = weights_of_model(parts["transformer"]) if write_weights is None else None
    with staged_directory(directory) as staged:
        _write(parts, staged, weights, max_shard_size)
        if write_weights is not None:
            write_weights(staged)


def weights_of_model(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The weights of a model by their names in a repository.

    Raises:
        ValueError: if `model` is not the model itself, or its weights are not all there and its own.
    """
    classes = [kind for kind in type(model).__mro__ if kind.__name__ == MODEL]
    if not classes:
        raise ValueError(
            f"`transformer` must be the {MODEL} itself to be saved (merge or unwrap it first), got "
            f"{type(model).__name__}."
        )
    if getattr(model, "_hf_peft_config_loaded", False) or any("lora_" in key for key in model.state_dict()):
        raise ValueError(
            "`transformer` has adapters, and a repository holds the model without: save them by themselves with "
            "`transformer.save_pretrained(another_folder)`, then take them off with "
            "`transformer.delete_adapter(name)`, or merge them with "
            "`peft.PeftModel.from_pretrained(model, another_folder).merge_and_unload()`."
        )
    # peft leaves its wrappers behind when the last adapter is deleted.
    weights = {
        ".".join(part for part in key.split(".") if part != "base_layer"): weight
        for key, weight in model.state_dict().items()
    }
    _check_weights("transformer", model, weights, lambda: classes[0](copy.deepcopy(model.config)))
    return weights


def _check_weights(name: str, module: nn.Module, weights: dict[str, torch.Tensor], build: Callable[[], nn.Module]):
    """Raises a `ValueError` unless `weights` are in memory, and those of what `build` makes of the configuration."""
    # transformers itself reads back what its `device_map` has offloaded.
    is_dispatched = isinstance(module, PreTrainedModel) and hasattr(module, "hf_device_map")
    if (any(weight.is_meta for weight in weights.values()) and not is_dispatched) or _is_on_disk(module):
        raise ValueError(
            f"`{name}` must have its weights in memory to be saved, some are offloaded or on the meta device: call "
            "`pipe.remove_all_hooks()`, or load it again without offloading."
        )
    if any(hasattr(weight, "full_tensor") for weight in weights.values()):
        raise ValueError(f"`{name}` must be whole to be saved, its weights are in shards: gather them first.")
    if getattr(module, "hf_quantizer", None) is None:
        with torch.device("meta"):
            expected = {key: weight.shape for key, weight in build().state_dict().items()}
        found = {key: weight.shape for key, weight in weights.items()}
        different = sorted(key for key in expected | found if expected.get(key) != found.get(key))
        if different:
            raise ValueError(
                f"`{name}` must have the weights that its configuration describes to be saved, these differ: "
                f"{', '.join(different[:3])}{', ...' if len(different) > 3 else ''}."
            )


def _is_on_disk(module: nn.Module) -> bool:
    """Whether diffusers' group offloading keeps weights in files; the module then holds others, of no meaning."""
    for submodule in module.modules():
        registry = getattr(submodule, "_diffusers_hook", None)
        hook = registry and registry.get_hook("group_offloading")
        if hook and hook.group.offload_to_disk_path is not None:
            return True
    return False


def _unwrapped(component):
    """The module that `torch.compile` has wrapped."""
    return getattr(component, "_orig_mod", component)


@contextmanager
def staged_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """
    An empty folder beside `directory` to write to, which takes its place in the end: an interruption leaves
    `directory` as it was. Of what was in there, files that the new folder does not have stay, but for weights in place
    of which it has others.

    Raises:
        ValueError: if `directory` is a file, or holds an adapter, which would be loaded on top of the new weights.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`save_directory` must be a folder, {directory} is a file.")
    if (directory / ADAPTER).exists():
        raise ValueError(
            f"`save_directory` must hold no adapter, which would be loaded on top of what is saved: move {ADAPTER} "
            f"and its weights out of {directory} first."
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.saving-", dir=directory.parent))
    new, old = staging / "new", staging / "old"
    try:
        new.mkdir()
        yield new
        if directory.exists():
            _keep_others(directory, new)
            directory.rename(old)
        new.rename(directory)
    finally:
        if old.exists() and not directory.exists():
            old.rename(directory)
        shutil.rmtree(staging)


def _keep_others(directory: Path, new: Path):
    """Links what is in `directory` and not in `new` into that; of weights, only where `new` has none."""
    replaced = any(WEIGHTS.fullmatch(file.name) for file in new.iterdir())
    for entry in directory.iterdir():
        kept = new / entry.name
        if entry.is_dir() and not entry.is_symlink():
            kept.mkdir(exist_ok=True)
            _keep_others(entry, kept)
        elif not kept.exists() and not (replaced and WEIGHTS.fullmatch(entry.name)):
            try:
                os.link(entry, kept, follow_symlinks=False)
            except OSError:  # not every file system has links
                shutil.copy2(entry, kept, follow_symlinks=False)


def _write(parts: dict, directory: Path, weights: dict[str, torch.Tensor] | None, max_shard_size: int | str | None):
    transformer, processor = parts["transformer"], parts["processor"]
    type(transformer.config).register_for_auto_class()
    type(transformer).register_for_auto_class("AutoModelForCausalLM")
    type(processor).register_for_auto_class()
    transformer.config.auto_map = dict(AUTO_MAP)
    if weights is not None:
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        if getattr(transformer, "hf_quantizer", None) is None:
            # Once an adapter was loaded, the "original" names would be those of adapters, also after it is deleted.
            options["save_original_format"] = False
        transformer.save_pretrained(directory, state_dict=weights, **options)
    else:
        transformer.config.architectures = [type(transformer).__name__]
        custom_object_save(transformer, directory, config=transformer.config)
        transformer.config.save_pretrained(directory)
        transformer.generation_config.save_pretrained(directory)
    processor.save_pretrained(directory)
    index = {
        "_class_name": ["pipeline", "RosettaPipeline"],
        "_diffusers_version": diffusers.__version__,
        "processor": ["repository_rosetta", "RootProcessor"],
        "transformer": ["repository_rosetta", "RootModel"],
    }
    for name in ("scheduler", "vae"):
        component = parts[name]
        index[name] = [None, None] if component is None else ["diffusers", type(component).__name__]
        if component is not None:
            component.save_pretrained(directory / name)
            _forget_origin(directory / name / component.config_name)
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    code = Path(__file__).parent
    for file in CODE:
        shutil.copyfile(code / file, directory / file)
    for name in ("transformer", "processor"):
        (directory / name).mkdir()
        shutil.copyfile(code / "repository_rosetta.py", directory / name / "repository_rosetta.py")


def _forget_origin(file: Path):
    """diffusers writes down the folder that a component was loaded from."""
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


__all__ = ["RootModel", "RootProcessor", "save_repository", "staged_directory"]
