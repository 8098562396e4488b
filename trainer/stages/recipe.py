"""A stage of pretraining as a YAML file (paper, Table 3) with what the command line changes in it."""

import dataclasses
import difflib
import json
import os
from argparse import ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from modeling_rosetta.conversation_rosetta import LAYOUTS

from ..data import DataSource
from ..data.stream import SHARES_OF
from ..training_arguments import RosettaTrainingArguments
from .starting_point import ARCHITECTURES


SECTIONS = ("data", "validation", "samples", "baselines")  # of a recipe, besides its arguments
TRAINS = ("backbone", "projectors")
# Of a source, and not how it is read.
WHICH_DATA = ("task", "path", "name", "data_files", "split", "streaming", "sample_by")


@dataclass
class SampleSettings:
    """
    What is asked of the model while it trains.

    Args:
        steps (`int`): every so many, and after the last.
        prompts (`list[str]`): to draw.
        questions (`list[dict]`): `{"question": str}` to answer, with `"image"`, a path, to answer about one.

    Raises:
        ValueError: if there is nothing to ask, or a value is not as it must be.
    """

    steps: int
    prompts: list[str] = field(default_factory=list)
    questions: list[dict] = field(default_factory=list)

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"`samples`: `steps` must be at least 1, got {self.steps!r}.")
        if not self.prompts and not self.questions:
            raise ValueError("`samples` must have `prompts` or `questions`.")
        if not isinstance(self.prompts, list) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError(f"`samples`: `prompts` must be a list of strings, got {self.prompts!r}.")
        for entry in self.questions:
            if not isinstance(entry, dict) or set(entry) - {"image"} != {"question"}:
                raise ValueError(
                    f"`samples`: each of `questions` has `question`, and may have `image`; got {entry!r}."
                )

    def check_images(self):
        """
        Raises:
            ValueError: if there is no such image.
        """
        for entry in self.questions:
            if (image := entry.get("image")) is not None and not Path(image).is_file():
                raise ValueError(f"`samples`: there is no image '{image}'.")


@dataclass
class StageArguments:
    """
    What a stage is, besides the [`RosettaTrainingArguments`] of its training.

    Raises:
        ValueError: if an argument is out of its range, or there are no steps to train.
    """

    stage: str = field(metadata={"help": "Name of the stage in the model's training record."})
    model: str = field(
        metadata={"help": "Folder or Hub id to start from: the last stage's repository, or a dense Qwen3 to upcycle."}
    )
    max_length: int = field(metadata={"help": "Tokens of a row, into which samples are packed."})
    global_batch_size: int = field(
        metadata={
            "help": "Rows of an optimizer step, over all processes. Gradient accumulation follows from it, so that a "
            "recipe is the same on any number of processes."
        }
    )
    architecture: str = field(
        default="rosetta", metadata={"help": "Composition of the model (paper, Table 4).", "choices": [*ARCHITECTURES]}
    )
    train: str = field(
        default="backbone",
        metadata={
            "help": "`backbone`: all but the ViT, of which the projectors are trained; or the `projectors` alone.",
            "choices": list(TRAINS),
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "Rows of the embedding when a dense model is upcycled. Default: as many as are needed."},
    )
    vision_tower: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a Qwen3-VL whose ViT is mounted if the model has none."},
    )
    image_pixels: list[int] | None = field(
        default=None,
        metadata={"help": "Least and most pixels of an image to understand. Default: those of the `vision_tower`."},
    )
    vae: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id with a FLUX.2 VAE in `vae/`, for which the model learns to draw."},
    )
    base_size: int = field(
        default=256, metadata={"help": "Side in pixels of the square image to draw, centre of the buckets."}
    )
    layout: str | None = field(
        default=None,
        metadata={"help": "Where images of a conversation stand. Default: as of the model.", "choices": list(LAYOUTS)},
    )
    image_embeds_from: list[str] | None = field(
        default=None,
        metadata={
            "help": "What images to understand are given as: `pixel_values`, `noisy_latents` or both. Default: as of "
            "the model."
        },
    )
    prompt_dropout: float = field(
        default=0.1, metadata={"help": "Share of the drawings that are learnt without a prompt, for guidance."}
    )
    max_skipped_share: float = field(
        default=0.01, metadata={"help": "Share of a source's records that may be damaged before the run stops."}
    )

    recompute: bool = field(
        default=False,
        metadata={
            "help": "Compute the activations of each layer again in the backward pass, rather than keeping them. "
            "A launch configuration that shards says by itself (`fsdp_activation_checkpointing`) that it does."
        },
    )
    shares_of: str = field(
        default="samples",
        metadata={"help": "What the weights of the sources are shares of.", "choices": list(SHARES_OF)},
    )

    validation_samples: int = field(
        default=256, metadata={"help": "Most samples of each source in `validation`, held out and evaluated on."}
    )
    validation: dict[str, DataSource] = field(default_factory=dict, init=False)
    samples: SampleSettings | None = field(default=None, init=False)

    def __post_init__(self):
        for name in ("max_length", "global_batch_size", "base_size", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.image_pixels is not None and (
            len(self.image_pixels) != 2 or not 0 < self.image_pixels[0] <= self.image_pixels[1]
        ):
            raise ValueError(f"`image_pixels` must be the least and the most pixels, got {self.image_pixels}.")


def read_recipe(arguments: list[str]) -> tuple[StageArguments, list[DataSource], RosettaTrainingArguments]:
    """
    Reads a recipe. Its keys are the fields of [`StageArguments`] and [`RosettaTrainingArguments`], and

    - `data`: a list of the fields of [`DataSource`]s;
    - `validation`: by name, the fields of held-out ones, whose losses are evaluated on their own;
    - `samples`: the fields of [`SampleSettings`];
    - `baselines`: what is otherwise when `architecture` is not `rosetta`;
    - `extends`: another recipe, relative to this one, whose keys hold where this one has none.

    `{architecture}` in a value stands for the architecture.

    Args:
        arguments (`list[str]`): of the command line: the recipe's path, then `--key value`, which wins over it.

    Raises:
        ValueError: if there is no such recipe, a key is unknown, or a value is not as it must be.
    """
    parser = HfArgumentParser(
        [StageArguments, RosettaTrainingArguments], usage="%(prog)s RECIPE [--key value ...]", allow_abbrev=False
    )
    if {"-h", "--help"} & {*arguments}:
        parser.parse_args(["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("The recipe must come first: RECIPE [--key value ...].")
    path, *overrides = arguments
    known = {field.name for kind in parser.dataclass_types for field in dataclasses.fields(kind) if field.init}
    recipe = _load(Path(path), known)
    sources = [_source(entry, path, "data") for entry in recipe.pop("data", [])]
    validation = recipe.pop("validation", None) or {}
    if not isinstance(validation, dict):
        raise ValueError(f"{path}: `validation` must name each of its sources, got {validation!r}.")
    held_out = {name: _source(entry, path, "validation") for name, entry in validation.items()}
    samples = recipe.pop("samples", None)
    baselines = recipe.pop("baselines", {})

    choice = ArgumentParser(add_help=False, allow_abbrev=False)
    choice.add_argument("--architecture", default=recipe.get("architecture", "rosetta"))
    architecture = choice.parse_known_args(overrides)[0].architecture
    if architecture != "rosetta":
        recipe |= baselines
    lines = [argument for key, value in recipe.items() for argument in _as_arguments(key, value)]
    stage, training, unknown = parser.parse_args_into_dataclasses(
        [argument.replace("{architecture}", architecture) for argument in (*lines, *overrides)],
        return_remaining_strings=True,
        look_for_args_file=False,
    )
    if unknown and (section := unknown[0].lstrip("-").split("=")[0]) in (*SECTIONS, "extends"):
        raise ValueError(
            f"`{section}` cannot be given on the command line: write a recipe that `extends` {path} and has another "
            f"`{section}`."
        )
    if unknown:
        raise ValueError(f"Unknown argument '{unknown[0]}'{_nearest(unknown[0].lstrip('-'), known, '--')}")
    if not sources:
        raise ValueError(f"{path}: `data` must list at least one source.")
    if training.max_steps < 1:
        raise ValueError(f"{path}: `max_steps` must be at least 1, got {training.max_steps}: the data never end.")
    if held_out and training.eval_strategy == "no":
        raise ValueError(f"{path}: `eval_strategy` must be 'steps' for the sources of `validation` to be evaluated.")
    stage.validation, stage.samples = held_out, None if samples is None else SampleSettings(**_checked(samples, path))
    training.gradient_accumulation_steps = accumulation_steps(stage, training)
    if stage.recompute and os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() != "true":
        for name in ("activation_checkpointing", "gradient_checkpointing"):  # its name from 5.20 on, and before
            if hasattr(training, name):
                setattr(training, name, True)
    return stage, sources, training


def stage_facts(stage: StageArguments, sources: list[DataSource]) -> dict:
    """What a stage is and reads, by name, to be compared when its run goes on."""
    facts = {name: value for name, value in dataclasses.asdict(stage).items() if name != "global_batch_size"}
    facts["sources"] = [{name: getattr(source, name) for name in WHICH_DATA} for source in sources]
    for number, source in enumerate(sources, start=1):
        others = {name: value for name, value in dataclasses.asdict(source).items() if name not in WHICH_DATA}
        facts |= {f"{name} of source {number}": value for name, value in others.items()}
    return facts


def accumulation_steps(stage: StageArguments, training: RosettaTrainingArguments) -> int:
    """
    Micro-batches of a step, from its rows, those of a micro-batch and the number of processes.

    Raises:
        ValueError: if they do not divide, or accelerate does not see all processes.
    """
    if training.gradient_accumulation_steps != 1:
        raise ValueError("`gradient_accumulation_steps` must not be given: it follows from `global_batch_size`.")
    rows, processes = training.per_device_train_batch_size, training.world_size
    if processes != (started := int(os.environ.get("WORLD_SIZE", 1))):
        raise ValueError(
            f"{started} processes were started, but accelerate takes each for one of {processes}. On a CPU, several "
            "need `--use_cpu`."
        )
    if stage.global_batch_size % (rows * processes):
        raise ValueError(
            f"`global_batch_size` must be a multiple of `per_device_train_batch_size` x processes = {rows} x "
            f"{processes}, got {stage.global_batch_size}."
        )
    return stage.global_batch_size // (rows * processes)


def _load(path: Path, known: set[str]) -> dict:
    if not path.is_file():
        raise ValueError(f"There is no recipe '{path}'.")
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(recipe).__name__}.")
    base = recipe.pop("extends", None)
    for key in (*recipe, *(recipe.get("baselines") or {})):
        if key not in known | {*SECTIONS}:
            raise ValueError(f"{path}: unknown key '{key}'{_nearest(key, known | {*SECTIONS})}")
    return recipe if base is None else {**_load(path.parent / base, known), **recipe}


def _checked(samples: dict, path: str) -> dict:
    known = {field.name for field in dataclasses.fields(SampleSettings)}
    if not isinstance(samples, dict) or "steps" not in samples or not samples.keys() <= known:
        raise ValueError(f"{path}: `samples` must have `steps` and any of {sorted(known)}, got {samples!r}.")
    return samples


def _source(entry: dict, path: str, section: str) -> DataSource:
    known = {field.name for field in dataclasses.fields(DataSource) if field.init}
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: each entry of `{section}` must hold keys and values, got {entry!r}.")
    for key in entry:
        if key not in known:
            raise ValueError(f"{path}: unknown key '{key}' of `{section}`{_nearest(key, known)}")
    required = {field.name for field in dataclasses.fields(DataSource) if field.default is dataclasses.MISSING}
    if missing := sorted(name for name in required - set(entry) if name in ("task", "path")):
        raise ValueError(f"{path}: an entry of `{section}` lacks {missing}: {entry}.")
    return DataSource(**entry)


def _as_arguments(key: str, value) -> list[str]:
    if value is None:
        return []  # the default
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _nearest(name: str, known: set[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; the nearest known one is '{prefix}{nearest[0]}'."


__all__ = ["StageArguments", "accumulation_steps", "read_recipe", "stage_facts"]
