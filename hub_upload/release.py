"""What belongs to a release: which files of a folder are published, and whether they may be."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, ModelCard
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_rosetta

from .card import model_card
from .disclosures import disclosures


PACKAGE = Path(modeling_rosetta.__file__).parent
CHECKSUMS = "SHA256SUMS"
CARD = "README.md"
# Everything that a release may hold. Whatever else lies in the folder stays there.
LAYOUT = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "model_index.json",
    "pipeline.py",
    "*_rosetta.py",
    "transformer/repository_rosetta.py",
    "processor/repository_rosetta.py",
    "scheduler/scheduler_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model*.safetensors",
    "vae/diffusion_pytorch_model.safetensors.index.json",
    "training.json",
    "assets/*.png",
    "assets/*.jpg",
    "assets/*.jpeg",
    "assets/*.webp",
    ".eval_results/*.yaml",
    "LICENSE*",
    "NOTICE*",
    CARD,
    CHECKSUMS,
)


@dataclass
class Release:
    """
    Attributes:
        folder (`Path`): where all of its files lie, and nothing else.
        left_out (`list[str]`): files of the original folder that are no part of it.
    """

    folder: Path
    left_out: list[str]

    @cached_property
    def operations(self) -> list[CommitOperationAdd]:
        """The files, to be committed, with their checksums, which are also written into one of them."""
        operations = [CommitOperationAdd(path, self.folder / path) for path in sorted(files_in(self.folder))]
        sums = "".join(f"{operation.upload_info.sha256.hex()}  {operation.path_in_repo}\n" for operation in operations)
        (self.folder / CHECKSUMS).write_text(sums)
        return [*operations, CommitOperationAdd(CHECKSUMS, self.folder / CHECKSUMS)]


def belongs(path: str) -> bool:
    """Whether the layout of a repository has a file of this name."""
    parts = PurePosixPath(path).parts
    return any(
        len(parts) == len(PurePosixPath(pattern).parts) and PurePosixPath(path).match(pattern) for pattern in LAYOUT
    )


def files_in(folder: Path) -> set[str]:
    """The paths of all files in `folder`, relative to it."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def sha256(file: Path) -> str:
    """The checksum of a file, as `sha256sum` gives it."""
    return CommitOperationAdd(file.name, file).upload_info.sha256.hex()


def code_files() -> dict[str, Path]:
    """The code of a repository, by its place there: the files of the package that `pipeline.py` reaches."""
    reached = {PACKAGE / "pipeline.py", *map(Path, get_relative_import_files(PACKAGE / "pipeline.py"))}
    code = {file.name: file for file in reached}
    return code | {
        f"{name}/repository_rosetta.py": code["repository_rosetta.py"] for name in ("transformer", "processor")
    }


def foreign_code(folder: Path) -> list[str]:
    """
    What loading `folder` may run that is not, byte for byte, the code of the installed package: files of code, and
    names in an `auto_map` that lead elsewhere, as to another repository.
    """
    code = code_files()
    found = [
        path
        for path in sorted(files_in(folder))
        if path.endswith(".py") and (path not in code or (folder / path).read_bytes() != code[path].read_bytes())
    ]
    for file in sorted(folder.rglob("*config.json")):
        for targets in _auto_maps(json.loads(file.read_text(encoding="utf-8"))):
            for target in targets if isinstance(targets, list) else [targets]:
                if target is not None and f"{target.split('.')[0]}.py" not in code:
                    found.append(f"{target}, in the `auto_map` of {file.relative_to(folder).as_posix()}")
    return found


def _auto_maps(config) -> Iterator:
    """All targets of the `auto_map`s in a configuration and those nested in it."""
    if isinstance(config, dict):
        yield from config.get("auto_map", {}).values()
        for value in config.values():
            yield from _auto_maps(value)


@contextmanager
def prepared_release(folder: str | os.PathLike, repo_id: str, **facts) -> Iterator[Release]:
    """
    A release of a saved repository: beside it, with links to its files, its card and its checksums. The folder itself
    is not changed, and the release is gone afterwards.

    Args:
        folder (`str` or `os.PathLike`)
        repo_id (`str`)
        facts: of [`model_card`]; only if there is no README.md in the folder, which is the card then.

    Raises:
        ValueError: if the folder is not complete, its code is not the package's, or a file holds what is nobody
            else's business, such as a token or a path of this machine.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder, {folder} is none.")
    paths = [path for path in sorted(files_in(folder)) if belongs(path) and path != CHECKSUMS]
    weights = _weights(folder, "model.safetensors") | _weights(folder / "vae", "diffusion_pytorch_model.safetensors")
    paths = [path for path in paths if not path.endswith(".safetensors") or folder / path in weights]
    _check_complete(folder, weights)
    if CARD in paths and facts:
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in facts)} cannot be given: {folder / CARD} is the card. Write it "
            "there, or remove that file to have a new card made."
        )
    card = ModelCard.load(folder / CARD) if CARD in paths else model_card(folder, repo_id=repo_id, **facts)

    with tempfile.TemporaryDirectory(prefix="release-") as staging:
        release = Path(staging) / repo_id.split("/")[-1]
        for path in paths:
            (release / path).parent.mkdir(parents=True, exist_ok=True)
            (release / path).symlink_to((folder / path).resolve())
        if CARD not in paths:
            (release / CARD).write_text(str(card), encoding="utf-8")
            paths.append(CARD)
        foreign = foreign_code(release)
        if foreign:
            raise ValueError(
                f"The code in {folder} must be that of the installed package, byte for byte. This is not: "
                f"{'; '.join(foreign)}. Save the pipeline again with this version of the package, and make changes in "
                "the package, where they are tested."
            )
        found = disclosures(release, machine_folders=[folder.resolve().parent, Path.home(), Path.cwd()])
        if found:
            raise ValueError(
                "The release holds what must not be published:\n" + "\n".join(f"  {line}" for line in found)
            )
        yield Release(release, sorted(files_in(folder) - {CHECKSUMS, *paths}))


def _weights(folder: Path, name: str) -> set[Path]:
    """The files of weights that are loaded: those of the index, if there is one."""
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return {folder / name}
    if (folder / name).is_file():  # of which transformers would load the one, and diffusers the other
        raise ValueError(
            f"`folder` must hold one set of weights, {folder} has both {name} and {index.name}: remove the older."
        )
    return {folder / shard for shard in json.loads(index.read_text())["weight_map"].values()}


def _check_complete(folder: Path, weights: set[Path]):
    needed = {"config.json", "processor_config.json", "tokenizer.json", "model_index.json"}
    needed |= {"scheduler/scheduler_config.json", *code_files()}
    draws = (folder / "config.json").is_file() and any(
        token_type.get("embeds_from") == "noisy_latents"
        for token_type in json.loads((folder / "config.json").read_text()).get("token_types", [])
    )
    if draws:
        needed.add("vae/config.json")
    needed |= {file.relative_to(folder).as_posix() for file in weights if draws or file.parent == folder}
    missing = sorted(path for path in needed if not (folder / path).is_file())
    if missing:
        raise ValueError(
            f"`folder` must be a complete repository, {folder} lacks {', '.join(missing)}. Save it with "
            "`RosettaPipeline(model, vae, scheduler, processor).save_pretrained(folder)`."
        )


__all__ = ["Release", "belongs", "files_in", "foreign_code", "prepared_release", "sha256"]
