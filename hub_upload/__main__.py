"""What is done to checkpoints and repositories from the command line."""

import argparse
import json
import sys
from pathlib import Path

import torch

from .convert import convert, revert


DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, or 1 after an error that is the user's to mend."""
    parser = argparse.ArgumentParser(prog="python -m hub_upload", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_convert(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_convert(commands):
    command = commands.add_parser(
        "convert",
        help="the authors' checkpoint to a repository, or back",
        description="Converts a checkpoint of the authors' to a repository for transformers and diffusers, or back.",
    )
    command.add_argument("source", help="safetensors file, folder, or owner/name[/path][@revision] on the Hub")
    command.add_argument("target", type=Path, help="folder to write; an error leaves it as it was")
    command.add_argument("--tokenizer", help="folder or Hub id of the authors' tokenizer; always needed")
    command.add_argument("--vae", help="diffusers folder or Hub id of the FLUX.2 VAE; needed if the checkpoint draws")
    command.add_argument("--image-processor", help="folder or Hub id; default: Qwen3-VL's with the authors' sizes")
    command.add_argument(
        "--config", type=_json_file, metavar="FILE", help="JSON file of fields of config.json that shapes do not tell"
    )
    command.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as they are")
    command.add_argument("--max-shard-size", default="5GB", help="most bytes of a file of weights (default: 5GB)")
    command.add_argument("--check-finite", action="store_true", help="refuse weights that are infinite or NaN")
    command.add_argument(
        "--revert", action="store_true", help="write the weights of a repository in the authors' layout instead"
    )
    command.set_defaults(run=_convert)


def _convert(options: argparse.Namespace):
    if options.revert:
        given = [
            name
            for name in ("tokenizer", "vae", "image_processor", "config", "dtype", "check_finite")
            if getattr(options, name)
        ]
        if given:
            raise ValueError(f"`--revert` writes the weights as they are, without the options {given}.")
        revert(options.source, options.target, options.max_shard_size)
    else:
        if options.tokenizer is None:
            raise ValueError("`--tokenizer` must be given: a folder or Hub id of the authors' tokenizer.")
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
        )
    print(f"Written: {options.target}")


def _json_file(path: str) -> dict:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} must be a JSON file ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
