"""
The repository: one folder, with one copy of the weights, for transformers and diffusers alike.

    config.json, model*.safetensors, processor_config.json, tokenizer*, *.py       transformers' layout, at the root
    model_index.json, pipeline.py, vae/, scheduler/                                diffusers' layout
    transformer/repository_rosetta.py, processor/repository_rosetta.py             from diffusers' layout to the root
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save


CODE = ("pipeline.py", "latent_codec_rosetta.py", "repository_rosetta.py")  # what the model and processor do not bring
AUTO_MAP = {
    "AutoConfig": "configuration_rosetta.RosettaConfig",
    "AutoModel": "modeling_rosetta.RosettaModel",
    "AutoModelForCausalLM": "modeling_rosetta.RosettaForCausalLMAndImageGeneration",
    "AutoModelForImageTextToText": "modeling_rosetta.RosettaForCausalLMAndImageGeneration",
    "AutoModelForMultimodalLM": "modeling_rosetta.RosettaForCausalLMAndImageGeneration",
    "AutoProcessor": "processing_rosetta.RosettaProcessor",
}


class RootModel(PreTrainedModel):
    """What diffusers loads as `transformer/`: the model one folder up."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs) -> PreTrainedModel:
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
        ValueError: if the transformer is wrapped, as by peft or `torch.compile`, or `directory` is a file.
    """
    if not isinstance(pipeline.transformer, PreTrainedModel):
        raise ValueError(
            "`transformer` must be the model itself to be saved (merge or unwrap it first), got "
            f"{type(pipeline.transformer).__name__}."
        )
    with staged_directory(directory) as staged:
        _write(pipeline, staged, max_shard_size, write_weights)


@contextmanager
def staged_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """
    An empty folder beside `directory` to write to, which takes its place in the end: an interruption leaves
    `directory` as it was. Of what was in there, files that the new folder does not have stay, but for weights.

    Raises:
        ValueError: if `directory` is a file.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`save_directory` must be a folder, {directory} is a file.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.saving-", dir=directory.parent))
    try:
        (staging / "new").mkdir()
        yield staging / "new"
    except BaseException:
        shutil.rmtree(staging)
        raise
    _replace(directory, staging / "new", staging / "old")
    shutil.rmtree(staging)


def _write(pipeline, directory: Path, max_shard_size: int | str | None, write_weights: Callable[[Path], None] | None):
    transformer, processor = pipeline.transformer, pipeline.processor
    type(transformer.config).register_for_auto_class()
    type(transformer).register_for_auto_class("AutoModelForCausalLM")
    type(processor).register_for_auto_class()
    transformer.config.auto_map = dict(AUTO_MAP)
    if write_weights is None:
        sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        transformer.save_pretrained(directory, **sharding)
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
        component = getattr(pipeline, name)
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
    if write_weights is not None:
        write_weights(directory)


def _forget_origin(file: Path):
    """diffusers writes down the folder that a component was loaded from."""
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replace(directory: Path, new: Path, old: Path):
    """`new` becomes `directory`. What was there is only moved: foreign files back into it, the rest to `old`."""
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    if old.exists():
        for entry in old.iterdir():
            if not (directory / entry.name).exists() and not entry.match("model*.safetensors*"):
                entry.rename(directory / entry.name)


__all__ = ["RootModel", "RootProcessor", "save_repository", "staged_directory"]
