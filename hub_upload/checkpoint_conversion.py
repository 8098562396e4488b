"""The authors' checkpoints to repositories for transformers and diffusers, and back: the files."""

import argparse
import functools
import json
import re
from pathlib import Path, PurePosixPath

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging

from modeling_rosetta import RosettaConfig, RosettaPipeline, RosettaProcessor
from modeling_rosetta.repository_rosetta import save_repository, staged_directory

from .authors_layout import IGNORED, LATENT_PREFIX
from .card import add_facts, facts_of, model_card
from .publication import destination, push
from .state_dict_conversion import Conversion, Reversion
from .weight_files import open_weights, parse_hub_source, write_weights


logger = logging.get_logger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
# Pixels of an image to understand in the authors' inference.
IMAGE_SIZE = {"shortest_edge": 512 * 512, "longest_edge": 2048 * 2048}
NEW = "newly_initialized"  # metadata of our files: tensors that the authors' checkpoint did not have


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
    facts: dict | None = None,
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
        facts (`dict`, *optional*): arguments of [`model_card`]. A source on the Hub is its `base_model`.

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
    conversion.config.dtype = conversion.tensors["model.norm.weight"].dtype

    def read(key: str) -> torch.Tensor:
        tensor = conversion.read(key, files.read)
        if check_finite and not tensor.isfinite().all():
            raise ValueError(f"`source`: the weights of '{key}' are not all finite.")
        return tensor

    def write(folder: Path):
        metadata = {NEW: json.dumps(list(conversion.new))} if conversion.new else None
        write_weights(folder, conversion.tensors, read, max_shard_size, metadata)
        model_card(folder, **{"repo_id": Path(target).resolve().name, **_origin(source), **(facts or {})}).save(
            folder / "README.md"
        )

    if conversion.new:
        logger.warning(f"The checkpoint does not draw yet; newly initialised: {list(conversion.new)}.")
    if IGNORED in files.tensors:
        logger.warning(f"`{IGNORED}` is left out, as in the authors' code: the head is tied to the embedding.")
    save_repository(pipeline, target, write_weights=write)


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


def _origin(source: str | Path) -> dict:
    if Path(source).exists():
        return {"summary": "Converted from a checkpoint of the authors' code."}
    repo_id, path, _ = parse_hub_source(str(source))
    where = "" if path == PurePosixPath() else f", `{path}`"
    return {"summary": f"Converted from [{repo_id}](https://huggingface.co/{repo_id}){where}.", "base_model": repo_id}


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


def add_command(commands):
    """`python -m hub_upload convert SRC DST`."""
    parser = commands.add_parser(
        "convert",
        help="the authors' checkpoint to a repository, or back",
        description="Converts a checkpoint of the authors' to a repository for transformers and diffusers, or back.",
    )
    parser.add_argument("source", help="safetensors file, folder, or owner/name[/path][@revision] on the Hub")
    parser.add_argument("target", type=Path, help="folder to write; an error leaves it as it was")
    parser.add_argument("--tokenizer", help="folder or Hub id of the authors' tokenizer; always needed")
    parser.add_argument("--vae", help="diffusers folder or Hub id of the FLUX.2 VAE; needed if the checkpoint draws")
    parser.add_argument("--image-processor", help="folder or Hub id; default: Qwen3-VL's with the authors' sizes")
    parser.add_argument(
        "--config", type=_json_file, metavar="FILE", help="JSON file of fields of config.json that shapes do not tell"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as they are")
    parser.add_argument("--max-shard-size", default="5GB", help="most bytes of a file of weights (default: 5GB)")
    parser.add_argument("--check-finite", action="store_true", help="refuse weights that are infinite or NaN")
    parser.add_argument(
        "--revert", action="store_true", help="write the weights of a repository in the authors' layout instead"
    )
    parser.add_argument("--push", metavar="NAME/MODEL", help="publish the repository afterwards, as `push` does")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    add_facts(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace):
    if options.revert:
        given = [
            name
            for name in ("tokenizer", "vae", "image_processor", "config", "dtype", "check_finite", "push", "private")
            if getattr(options, name)
        ]
        if given:
            raise ValueError(f"`--revert` writes the weights as they are, without the options {given}.")
        revert(options.source, options.target, options.max_shard_size)
    else:
        if options.tokenizer is None:
            raise ValueError("`--tokenizer` must be given: a folder or Hub id of the authors' tokenizer.")
        if options.push:
            options.push = destination(options.push)
        convert(
            options.source,
            options.target,
            options.tokenizer,
            options.vae,
            options.image_processor,
            options.config,
            None if options.dtype is None else getattr(torch, options.dtype),
            options.max_shard_size,
            options.check_finite,
            ({"repo_id": options.push} if options.push else {}) | facts_of(options),
        )
    print(f"Written: {options.target}")
    if options.push:
        push(options.target, options.push, private=options.private)


def _json_file(path: str) -> dict:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} must be a JSON file ({error})") from error


__all__ = ["add_command", "convert", "revert"]
