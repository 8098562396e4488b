"""Files of weights, read tensor by tensor and written shard by shard: a checkpoint need not fit into memory."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import torch
from huggingface_hub import HfApi, constants, snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFiles:
    """
    The tensors of one or several safetensors files, read when they are asked for.

    Args:
        files (`Iterable[Path]`)

    Attributes:
        tensors (`dict[str, torch.Tensor]`): shape and dtype of each tensor, on the meta device.
        metadata (`dict[str, str]`): the text that the files carry beside their tensors.

    Raises:
        ValueError: if a file is missing or damaged, a tensor stands in two of them or holds no real numbers.
    """

    def __init__(self, files: Iterable[Path]):
        self.tensors: dict[str, torch.Tensor] = {}
        self.metadata: dict[str, str] = {}
        self._file_of = {}
        for file in files:
            if not file.is_file():
                raise ValueError(f"`source`: the file {file} is missing.")
            try:
                # Not mapped into memory, since the pages would count as this process's.
                opened = safe_open(file, framework="pt", backend="pread")
            except SafetensorError as error:
                raise ValueError(f"`source`: the file {file} is damaged or incomplete ({error}).") from error
            self.metadata |= opened.metadata() or {}
            for key in opened.keys():
                view = opened.get_slice(key)
                if key in self.tensors:
                    raise ValueError(f"`source`: the tensor '{key}' stands in {file} and in another file.")
                if view.get_dtype() not in DTYPES:
                    raise ValueError(
                        f"`source`: the tensor '{key}' in {file} must have one of the types {list(DTYPES)}, got "
                        f"{view.get_dtype()}."
                    )
                self.tensors[key] = torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta")
                self._file_of[key] = opened

    def read(self, key: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        return self._file_of[key].get_tensor(key)


def open_weights(source: str | Path) -> WeightFiles:
    """
    Opens the weights of a checkpoint.

    Args:
        source (`str` or `Path`): a safetensors file or a folder of them, here or on the Hub as
            `owner/name[/path][@revision]`. The files may lie in a folder within if no other has any.

    Raises:
        ValueError: if no weights are found, or several sets of them, or a file is missing or damaged.
    """
    path = Path(source)
    if not path.exists():
        path = _download(str(source))
    if path.is_file():
        return WeightFiles([path])
    return WeightFiles(_files_of(_folder_with_weights(path.rglob("*.safetensors"), path, source)))


def write_weights(
    directory: Path,
    tensors: dict[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    max_shard_size: int | str = "5GB",
    metadata: dict[str, str] | None = None,
):
    """
    Writes `model*.safetensors` and, for several shards, their index, as transformers names them. Holds one shard in
    memory.

    Args:
        directory (`Path`)
        tensors (`dict[str, torch.Tensor]`): shape and dtype of each tensor, on the meta device.
        read (`Callable[[str], torch.Tensor]`): gives the tensor of a key. Keys come in the order of `tensors`.
        max_shard_size (`int` or `str`): the most bytes of a file, e.g. `"5GB"`; a larger tensor has its own.
        metadata (`dict[str, str]`, *optional*): text to carry in each file.
    """
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    with tqdm(total=split.metadata["total_size"], unit="B", unit_scale=True, desc="Writing weights") as progress:
        for file, keys in split.filename_to_tensors.items():
            shard = {}
            for key in keys:
                shard[key] = read(key)
                progress.update(shard[key].nbytes)
            save_file(shard, directory / file, metadata={"format": "pt", **(metadata or {})})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / constants.SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _files_of(folder: Path) -> list[Path]:
    single, index = folder / constants.SAFETENSORS_SINGLE_FILE, folder / constants.SAFETENSORS_INDEX_FILE
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"`source`: the index {index} is damaged ({error!r}).") from error
        return [folder / name for name in names]
    return sorted(folder.glob("*.safetensors"))


def _folder_with_weights(files: Iterable[Path | PurePosixPath], root: Path | PurePosixPath, source) -> Path:
    """The root if weights lie there, else the one folder below it that has some."""
    folders = sorted({file.parent for file in files})
    if root in folders:
        return root
    if len(folders) != 1:
        found = "no safetensors files" if not folders else f"them in several folders: {[str(f) for f in folders]}"
        raise ValueError(f"`source` must be or have one folder with safetensors files; {source} has {found}.")
    return folders[0]


def parse_hub_source(source: str) -> tuple[str, PurePosixPath, str | None]:
    """`owner/name[/path][@revision]` to the repository's id, the path in it, and the revision."""
    name, _, revision = source.partition("@")
    owner, *rest = name.split("/")
    if not owner or owner.startswith(".") or not rest:
        raise ValueError(
            f"`source` must be a file, a folder, or owner/name[/path][@revision] on the Hub; {source} is none."
        )
    return f"{owner}/{rest[0]}", PurePosixPath(*rest[1:]), revision or None


def _download(source: str) -> Path:
    """Fetches the weights from the Hub and returns where they lie."""
    repo_id, path, revision = parse_hub_source(source)
    files = [PurePosixPath(file) for file in HfApi().list_repo_files(repo_id, revision=revision)]
    pattern = str(path)
    if path not in files:
        weights = [file for file in files if file.suffix == ".safetensors" and file.is_relative_to(path)]
        path = _folder_with_weights(weights, path, source)
        pattern = str(path / "*.safetensors*")
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[pattern])) / path


__all__ = ["WeightFiles", "open_weights", "parse_hub_source", "write_weights"]
