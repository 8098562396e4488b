"""Checkpoints that are whole or not there at all, whenever the run is killed: written elsewhere, then renamed."""

import os
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


SAVING, REPLACED, DELETING = ".saving", ".replaced", ".deleting"


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The checkpoint of the latest step in `output_dir`, or `None` if there is none, so that the same script starts a run
    and goes on with it: `trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))`.

    Args:
        output_dir (`str` or `os.PathLike`): of a [`RosettaTrainer`], which saves no incomplete `checkpoint-N`.
    """
    return get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None


def remove_unfinished(output_dir: str | os.PathLike):
    """Removes what a killed run left half written or half deleted. Nobody may be saving in the meantime."""
    for old in Path(output_dir, REPLACED).glob("*"):
        if not Path(output_dir, old.name).exists():  # killed before the new one took its place
            old.rename(Path(output_dir, old.name))
    for leftover in (SAVING, REPLACED, DELETING):
        if os.path.isdir(Path(output_dir, leftover)):
            shutil.rmtree(Path(output_dir, leftover))


def flush_to_disk(folder: str | os.PathLike):
    """Waits until all files in `folder` would survive a power cut too."""
    for place, _, files in os.walk(folder):
        for path in (*(os.path.join(place, file) for file in files), place):
            _fsync(path)


def publish_folder(name: str, output_dir: str | os.PathLike):
    """Renames `output_dir/.saving/name`, all of whose files are written, to `output_dir/name`, in place of an older
    one."""
    output_dir = Path(output_dir)
    if (output_dir / name).exists():
        (output_dir / REPLACED).mkdir(exist_ok=True)
        (output_dir / name).rename(output_dir / REPLACED / name)
    (output_dir / SAVING / name).rename(output_dir / name)
    _fsync(output_dir)
    remove_unfinished(output_dir)


def rotate_checkpoints(output_dir: str | os.PathLike, limit: int | None, keep: list[str]):
    """
    Deletes the checkpoints that were saved first, until at most `limit` are left.

    Args:
        output_dir (`str` or `os.PathLike`)
        limit (`int`, *optional*): no limit if `None` or below 1.
        keep (`list[str]`): names that stay in any case: the last checkpoint and the best one.
    """
    if limit is None or limit < 1:
        return
    checkpoints = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime_ns)
    others = [folder for folder in checkpoints if folder.name not in keep]
    Path(output_dir, DELETING).mkdir(exist_ok=True)
    for folder in others[: max(0, len(checkpoints) - limit)]:
        folder.rename(Path(output_dir, DELETING, folder.name))  # half deleted, it must not look like a checkpoint
    shutil.rmtree(Path(output_dir, DELETING))


def _fsync(path: str | os.PathLike):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "SAVING",
    "flush_to_disk",
    "last_complete_checkpoint",
    "publish_folder",
    "remove_unfinished",
    "rotate_checkpoints",
]
