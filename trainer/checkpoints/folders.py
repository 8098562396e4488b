"""Checkpoints that are whole or not there at all, whenever the run is killed: written elsewhere, then renamed."""

import json
import os
import re
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME


SAVING, REPLACED, DELETING = ".saving", ".replaced", ".deleting"
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_OURS = re.compile(r"checkpoint-\d+|ema")  # what is written in `SAVING`


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The checkpoint of the latest step in `output_dir`, or `None` if there is none, so that the same script starts a run
    and goes on with it: `trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))`.

    Args:
        output_dir (`str` or `os.PathLike`): of a [`RosettaTrainer`], which saves no incomplete `checkpoint-N`.
    """
    complete = [folder for folder in _numbered(output_dir) if (folder / TRAINER_STATE_NAME).is_file()]
    return str(max(complete, key=_step)) if complete else None


def check_checkpoint(folder: str | os.PathLike):
    """
    Raises:
        ValueError: if `folder` is no checkpoint that a run can go on from.
    """
    for file in (TRAINER_STATE_NAME, SCHEDULER_NAME):
        if not Path(folder, file).is_file():
            raise ValueError(f"`resume_from_checkpoint`: '{folder}' is no checkpoint to go on from, it has no {file}.")


def checkpoint_to_resume(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | bool | None = None
) -> str | None:
    """
    Where the run in `output_dir` goes on.

    Args:
        output_dir (`str` or `os.PathLike`)
        resume_from_checkpoint (`str` or `bool`, *optional*): as on a command line. A path: that checkpoint, of this
            run or, if `output_dir` has none, of another one. `"true"`: the last one, which must be there. By default
            the last one if there is one.

    Returns:
        The checkpoint, or `None` if the run starts.

    Raises:
        ValueError: if there is no such checkpoint, or going on elsewhere would overwrite those of `output_dir`.
    """
    last, asked = last_complete_checkpoint(output_dir), str(resume_from_checkpoint).lower()
    if asked == "none":
        return last
    if asked == "true":
        if last is None:
            raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint in '{output_dir}'.")
        return last
    if asked == "false":
        if last is not None:
            raise ValueError(
                f"`resume_from_checkpoint` is False, but '{last}' would be overwritten. Give another `output_dir`."
            )
        return None
    check_checkpoint(resume_from_checkpoint)
    if last is not None and not Path(resume_from_checkpoint).resolve().is_relative_to(Path(output_dir).resolve()):
        raise ValueError(
            f"`resume_from_checkpoint`: '{resume_from_checkpoint}' is of another run than '{last}', which would be "
            "overwritten. Give another `output_dir`."
        )
    return os.path.normpath(resume_from_checkpoint)


def finished_steps(checkpoint: str | os.PathLike) -> int:
    """The number of steps after which a checkpoint was saved."""
    return json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text())["global_step"]


def set_aside(
    output_dir: str | os.PathLike,
    checkpoint: str | os.PathLike,
    results: tuple[str, ...] = ("ema", "model", "adapter", "samples"),
) -> Path | None:
    """
    Moves what a run that is taken back to `checkpoint` has made since into a folder of its own: nothing is lost, and
    the next time the run goes on from where it was taken back to.

    Args:
        output_dir (`str` or `os.PathLike`)
        checkpoint (`str` or `os.PathLike`): of this run or another.
        results (`tuple[str]`): names of what a finished run leaves besides its checkpoints.

    Returns:
        The folder, or `None` if there is no checkpoint of a later step.
    """
    later = [folder for folder in _numbered(output_dir) if _step(folder) > finished_steps(checkpoint)]
    if not later:
        return None
    number = 1
    while (aside := Path(output_dir, f"rolled_back_{number}")).exists():
        number += 1
    aside.mkdir()
    # The latest first: killed in between, the rest is still taken back by the same command.
    results = [path for name in results if (path := Path(output_dir, name)).exists()]
    for path in (*results, *sorted(later, key=_step, reverse=True)):
        path.rename(aside / path.name)
    return aside


def take_back(output_dir: str | os.PathLike, checkpoint: str | os.PathLike):
    """Has the main process [`set_aside`] what came after `checkpoint`, and say so."""
    if PartialState().is_main_process and (aside := set_aside(output_dir, checkpoint)):
        print(f"The run is taken back to {checkpoint}; what came after it is in {aside}.", flush=True)


def remove_unfinished(output_dir: str | os.PathLike):
    """Removes what a killed run left half written or half deleted, and nothing else. Nobody may be saving in the
    meantime."""
    for old in _ours_in(Path(output_dir, REPLACED)):
        if not Path(output_dir, old.name).exists():  # killed before the new one took its place
            old.rename(Path(output_dir, old.name))
    for leftover in (SAVING, REPLACED, DELETING):
        for folder in _ours_in(Path(output_dir, leftover)):
            shutil.rmtree(folder)
        if os.path.isdir(Path(output_dir, leftover)) and not os.listdir(Path(output_dir, leftover)):
            os.rmdir(Path(output_dir, leftover))


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
        keep (`list[str]`): names that stay in any case: the last checkpoint and the best one. Of the others only those
            with a number are checkpoints.
    """
    if limit is None or limit < 1:
        return
    checkpoints = sorted(_numbered(output_dir), key=lambda folder: folder.stat().st_mtime_ns)
    others = [folder for folder in checkpoints if folder.name not in keep]
    Path(output_dir, DELETING).mkdir(exist_ok=True)
    for folder in others[: max(0, len(checkpoints) - limit)]:
        folder.rename(Path(output_dir, DELETING, folder.name))  # half deleted, it must not look like a checkpoint
    remove_unfinished(output_dir)


def _numbered(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoints in `output_dir`: a name of the user's own, such as `checkpoint-best`, is none."""
    folders = Path(output_dir).glob("checkpoint-*")
    return [folder for folder in folders if _NUMBERED.fullmatch(folder.name) and folder.is_dir()]


def _step(folder: Path) -> int:
    return int(_NUMBERED.fullmatch(folder.name)[1])


def _ours_in(folder: Path) -> list[Path]:
    return [entry for entry in folder.glob("*") if _OURS.fullmatch(entry.name)]


def _fsync(path: str | os.PathLike):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "SAVING",
    "check_checkpoint",
    "checkpoint_to_resume",
    "finished_steps",
    "flush_to_disk",
    "last_complete_checkpoint",
    "publish_folder",
    "remove_unfinished",
    "rotate_checkpoints",
    "set_aside",
    "take_back",
]
