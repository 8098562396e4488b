"""Checkpoints are whole or not there at all, wherever saving is cut off."""

import builtins
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from trainer import last_complete_checkpoint
from trainer.checkpoints import folders


class Killed(BaseException):
    """Nothing in a program that is killed gets to handle it."""


@pytest.fixture
def saver(tiny_model, records, trainer_of, tmp_path):
    """A trainer with its first checkpoints, which saves another when it is called with a step."""
    trainer = trainer_of(
        tiny_model(), records(16), max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=2, ema_decay=0.5
    )
    trainer.train()

    def save(step: int):
        trainer.state.global_step = step
        trainer._save_checkpoint(trainer.model, None)

    return save


def _files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def _kill_at(monkeypatch, call: int) -> list:
    """The process dies before the `call`-th time that it opens, saves, renames or flushes something, or deletes a
    file."""
    calls = []

    def dying(function):
        def wrapper(*args, **kwargs):
            calls.append(function.__name__)
            if len(calls) >= call:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(builtins, "open", dying(open))
    monkeypatch.setattr(torch, "save", dying(torch.save))
    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    monkeypatch.setattr(os, "unlink", dying(os.unlink))
    return calls


@pytest.mark.parametrize("step", [3, 2], ids=["a new one", "one that is there already"])
def test_killed_anywhere_while_saving(step, saver, tmp_path, tmp_path_factory, monkeypatch):
    before = {name: _files(tmp_path / name) for name in ("checkpoint-1", "checkpoint-2")}
    original = tmp_path_factory.mktemp("original")
    shutil.copytree(tmp_path, original, dirs_exist_ok=True)
    call, finished = 0, False
    moments = set()
    while not finished:
        call += 1
        shutil.rmtree(tmp_path)
        shutil.copytree(original, tmp_path)
        with monkeypatch.context() as patch:
            calls = _kill_at(patch, call)
            try:
                saver(step)
                finished = True
            except Killed:
                moments.add(calls[-1])
        folders.remove_unfinished(tmp_path)
        assert int(last_complete_checkpoint(tmp_path)[-1]) >= 2
        for checkpoint in tmp_path.glob("checkpoint-*"):
            files = _files(checkpoint)
            assert files.keys() == before["checkpoint-2"].keys()
            assert int(checkpoint.name[-1]) >= step or files == before[checkpoint.name]
        assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    assert moments == {"open", "save", "rename", "fsync", "unlink"}
    assert call > 30


def test_nothing_unfinished_is_picked(saver, tmp_path, monkeypatch):
    def publish_folder(name, folder):
        raise Killed

    monkeypatch.setattr("trainer.checkpoints.whole_checkpoints.publish_folder", publish_folder)
    with pytest.raises(Killed):
        saver(3)
    assert (tmp_path / folders.SAVING / "checkpoint-3" / "model.safetensors").exists()
    assert get_last_checkpoint(tmp_path) == last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_no_checkpoint_yet(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "not there") is None


def test_the_oldest_are_deleted_but_never_the_best_and_the_last(tmp_path):
    for time, step in enumerate((8, 1, 2, 3)):  # 8 is of an earlier run
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    folders.rotate_checkpoints(tmp_path, limit=None, keep=["checkpoint-3"])
    folders.rotate_checkpoints(tmp_path, limit=4, keep=["checkpoint-3"])
    assert len(list(tmp_path.iterdir())) == 4
    folders.rotate_checkpoints(tmp_path, limit=2, keep=["checkpoint-3", "checkpoint-1"])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    folders.rotate_checkpoints(tmp_path, limit=1, keep=["checkpoint-3", "checkpoint-1"])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}


def test_best_checkpoint_is_found_where_it_is(tiny_model, records, trainer_of, tmp_path):
    def train(**arguments):
        trainer = trainer_of(
            tiny_model(),
            records(16),
            records(4),
            **{
                "save_strategy": "steps",
                "save_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": 1,
                "load_best_model_at_end": True,
                "save_total_limit": 2,
                **arguments,
            },
        )
        return trainer

    trainer = train()
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}") and Path(best).is_dir()
    again = train(max_steps=5)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5
    assert Path(again.state.best_model_checkpoint).is_dir()
    with pytest.raises(ValueError, match="`save_total_limit` must be at least 2"):
        train(save_total_limit=1)


def test_a_run_is_resumed_from_the_last_complete_checkpoint(tiny_model, records, trainer_of, tmp_path, monkeypatch):
    def trainer():
        return trainer_of(tiny_model(), records(16), save_strategy="steps", save_steps=1)

    def publish_folder(name, folder):
        if name == "checkpoint-3":
            raise Killed
        folders.publish_folder(name, folder)

    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoints.whole_checkpoints.publish_folder", publish_folder)
        with pytest.raises(Killed):
            trainer().train()
    assert (tmp_path / folders.SAVING / "checkpoint-3").exists()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    whole = tiny_model()
    trainer_of(whole, records(16)).train()
    for actual, expected in zip(resumed.model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(actual, expected)
    assert not (tmp_path / folders.SAVING).exists()
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer_of(tiny_model(), records(4), output_dir=tmp_path / "none").train(resume_from_checkpoint=True)


def _checkpoint(folder: Path, step: int):
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "scheduler.pt").touch()


@pytest.fixture
def finished(tmp_path):
    """What a run has left, with two folders of the user's own."""
    for step in (10, 20, 30):
        _checkpoint(tmp_path / "run" / f"checkpoint-{step}", step)
    for name in ("ema", "model", "checkpoint-best-so-far", "checkpoint-20-mine"):
        (tmp_path / "run" / name).mkdir()
    return tmp_path / "run"


def test_only_numbered_checkpoints_are_deleted(finished):
    folders.rotate_checkpoints(finished, limit=1, keep=["checkpoint-30"])
    left = {path.name for path in finished.iterdir()}
    assert left == {"checkpoint-30", "ema", "model", "checkpoint-best-so-far", "checkpoint-20-mine"}


def test_nothing_of_the_users_is_cleared_away(finished):
    for place in (folders.SAVING, folders.REPLACED, folders.DELETING):
        _checkpoint(finished / place / "checkpoint-30", 30)
        (finished / place / "mine").mkdir()
    folders.remove_unfinished(finished)
    for place in (folders.SAVING, folders.REPLACED, folders.DELETING):
        assert [path.name for path in (finished / place).iterdir()] == ["mine"]


def test_a_checkpoint_that_is_not_whole_is_none(finished):
    (finished / "checkpoint-40").mkdir()
    (finished / "checkpoint-40" / "checkpoint-is-incomplete.txt").touch()
    assert last_complete_checkpoint(finished) == str(finished / "checkpoint-30")


def test_where_a_run_goes_on(finished, tmp_path):
    new, last = tmp_path / "new", str(finished / "checkpoint-30")
    assert folders.checkpoint_to_resume(new) is None
    assert folders.checkpoint_to_resume(finished) == last
    assert folders.checkpoint_to_resume(finished, "true") == folders.checkpoint_to_resume(finished, True) == last
    earlier = str(finished / "checkpoint-20")
    assert folders.checkpoint_to_resume(finished, f"{earlier}/") == earlier
    assert folders.checkpoint_to_resume(new, earlier) == earlier  # another run that begins with this one's state
    assert folders.checkpoint_to_resume(new, "false") is None


@pytest.mark.parametrize(
    ("run", "asked", "message"),
    [
        ("new", "true", "there is no checkpoint in '.*new'"),
        ("run", "false", "'.*checkpoint-30' would be overwritten"),
        ("run", "run/checkpoint-25", "'.*checkpoint-25' is no checkpoint to go on from"),
        ("run", "run/model", "'.*model' is no checkpoint to go on from, it has no trainer_state.json"),
        ("other", "run/checkpoint-20", "is of another run than '.*other/checkpoint-5', which would be overwritten"),
    ],
)
def test_where_a_run_cannot_go_on(run, asked, message, finished, tmp_path):
    _checkpoint(tmp_path / "other" / "checkpoint-5", 5)
    asked = str(tmp_path / asked) if "/" in asked else asked
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint`.*{message}"):
        folders.checkpoint_to_resume(tmp_path / run, asked)


def test_what_came_after_is_set_aside(finished):
    (finished / "adapter").mkdir()
    assert folders.set_aside(finished, finished / "checkpoint-30") is None
    aside = folders.set_aside(finished, finished / "checkpoint-10")
    assert {path.name for path in aside.iterdir()} == {"checkpoint-20", "checkpoint-30", "ema", "model", "adapter"}
    assert last_complete_checkpoint(finished) == str(finished / "checkpoint-10")
    assert (finished / "checkpoint-best-so-far").is_dir()
    _checkpoint(finished / "checkpoint-20", 20)
    assert folders.set_aside(finished, finished / "checkpoint-10") != aside
    assert folders.checkpoint_to_resume(finished, aside / "checkpoint-30") == str(aside / "checkpoint-30")
