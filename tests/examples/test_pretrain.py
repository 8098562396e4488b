"""The miniature recipes, each stage of each architecture, as `accelerate launch` runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from run_stages import STAGES

from examples.pretrain import main
from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from trainer import RosettaTrainer


ROOT = Path(__file__).parents[2]
SHORT = "--max_steps=2 --global_batch_size=2 --logging_steps=1 --save_steps=2 --disable_tqdm=true --shield_steps=1"


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def _launch(folder: Path, script: str, *arguments: str, options: str = "") -> subprocess.CompletedProcess:
    config = ROOT / "examples" / "accelerate_configs" / "cpu.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, *options.split()]
    return _run(folder, *launcher, ROOT / script, *arguments)


def _recipe(stage: str) -> str:
    return str(ROOT / "examples" / "recipes" / "miniature" / f"{stage}.yaml")


def _record(model: Path) -> list[dict]:
    return json.loads((model / "training.json").read_text())["stages"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with the miniature's inputs, whose models have hardly been trained."""
    folder = tmp_path_factory.mktemp("miniature")
    made = _run(folder, ROOT / "examples" / "make_miniature_data.py", "--training_steps=2")
    assert made.returncode == 0, made.stderr
    return folder


def _check(folder: Path, architecture: str, num_processes: int):
    """The last stage's repository draws, and remembers all stages."""
    model = folder / "outputs" / "miniature" / architecture / "4_t2i" / "model"
    stages = _record(model)
    assert [stage["stage"] for stage in stages] == ["LM", "MMU, projectors", "MMU", "T2I"]
    assert [stage["data"] for stage in stages][2:] == ["80% MMU, 20% LM", "60% T2I, 25% MMU, 15% LM"]
    assert {stage["processes"] for stage in stages} == {num_processes}
    for stage in stages:
        made = stage["hyperparameters"]["gradient_accumulation_steps"] * num_processes
        assert (stage["steps"], made) == (2, 2)
    trained = [stage["trained_parameters"] for stage in stages]
    assert trained[1] < 0.1 * trained[0] and trained[2] > trained[0]
    pipeline = DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("draw a seven", num_inference_steps=1).images[0].size == (16, 16)


def test_every_stage_from_the_command_line(folder):
    for stage in STAGES:
        launched = _launch(folder, "examples/pretrain.py", _recipe(stage), *SHORT.split())
        assert launched.returncode == 0, launched.stderr
    _check(folder, "rosetta", num_processes=1)


@pytest.mark.parametrize(("architecture", "num_processes"), [("moe", 1), ("mot", 2)])
def test_every_stage_of_the_baselines(architecture, num_processes, folder):
    options = "" if num_processes == 1 else f"--multi_gpu --num_processes {num_processes} --main_process_port 0"
    arguments = [*SHORT.split(), f"--architecture={architecture}", "--use_cpu=true"]
    launched = _launch(folder, "tests/examples/run_stages.py", *arguments, options=options)
    assert launched.returncode == 0, launched.stderr
    _check(folder, architecture, num_processes)


@pytest.fixture
def here(folder, monkeypatch, tmp_path):
    """The working directory is one of its own that has the miniature's inputs."""
    (tmp_path / "outputs" / "miniature").mkdir(parents=True)
    (tmp_path / "outputs" / "miniature" / "inputs").symlink_to(folder / "outputs" / "miniature" / "inputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "miniature" / "rosetta" / "1_lm"


def test_every_stage_under_fsdp2(here):
    folder = Path.cwd()
    launched = _run(folder, ROOT / "tests/examples/run_sharded_stages.py", *SHORT.split(), "--bf16", "--use_cpu")
    assert launched.returncode == 0, launched.stderr
    last = folder / "outputs" / "miniature" / "rosetta" / "4_t2i"
    assert (last / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()
    _check(folder, "rosetta", num_processes=2)


def _weights(model: Path) -> dict[str, torch.Tensor]:
    return RosettaForCausalLMAndImageGeneration.from_pretrained(model).state_dict()


def test_the_same_command_goes_on_from_the_last_checkpoint(here):
    arguments = [_recipe("1_lm"), *SHORT.split(), "--use_cpu=true", "--max_steps=4", "--lr_scheduler_type=constant"]
    main(arguments)
    expected = _weights(here / "model")
    (here / "checkpoint-4").rename(here / "lost")
    (here / "model").rename(here / "whole")
    written = (here / "checkpoint-2").stat().st_ino
    main(arguments)
    assert (here / "checkpoint-2").stat().st_ino == written  # not trained again
    assert [line["step"] for line in _record(here / "model")[0]["log"]] == [1, 2, 3, 4]
    assert all(torch.equal(weight, expected[name]) for name, weight in _weights(here / "model").items())
    assert len(_record(here / "model")) == 1


def test_a_run_that_goes_on_says_so_and_what_was_changed(here, capfd):
    arguments = [_recipe("1_lm"), *SHORT.split(), "--use_cpu=true", "--max_steps=4"]
    main(arguments)
    recorded = _record(here / "model")[0]
    assert recorded["hyperparameters"]["packed"] is True and recorded["hyperparameters"]["max_length"] == 128
    capfd.readouterr()
    main([*arguments, "--max_steps=6", "--learning_rate=1e-5"])
    out, err = capfd.readouterr()
    assert "The run goes on from outputs/miniature/rosetta/1_lm/checkpoint-4, after step 4." in out
    assert "From now on `learning_rate` is 1e-05, it was 0.001." in out
    assert not any(wrong in err for wrong in ("missing keys", "Unrecognized keys", "pin_memory"))
    recorded = _record(here / "model")[0]
    assert recorded["hyperparameters"]["learning_rate"] == "0.001, after step 4 1e-05"
    assert [log["learning_rate_base"] for log in recorded["log"]][-2:] == [1e-5, 1e-5]
    weights = _weights(here / "model")

    for refused, message in (
        ("--architecture=moe", "`architecture` must be what it was when the run was started, 'rosetta', got 'moe'"),
        ("--model=outputs/miniature/inputs/vision_tower", "`model` must be what it was"),
        ("--max_length=64", "`max_length` must be what it was"),
        ("--seed=5", "`seed` must be what it was"),
        ("--global_batch_size=4", "`rows of a step` must be what it was"),
        ("--train=projectors", "`train` must be what it was"),
        ("--max_steps=4", "`max_steps` must be at least 6"),
        ("--dataloader_num_workers=1", "`dataloader_num_workers` must be what it was, 0, got 1"),
        ("--resume_from_checkpoint=nowhere", "`resume_from_checkpoint`: 'nowhere' is no checkpoint"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*arguments, "--max_steps=6", f"--output_dir={here}", refused])

    # Taken back, and changed at once: nothing is lost, and without the flag it goes on from there.
    back = f"--resume_from_checkpoint={here}/checkpoint-4"
    main([*arguments, "--max_steps=6", "--learning_rate=1e-5", back])
    assert "is taken back to" in capfd.readouterr().out
    assert {path.name for path in (here / "rolled_back_1").iterdir()} == {"checkpoint-6", "model"}
    assert all(torch.equal(weight, weights[name]) for name, weight in _weights(here / "model").items())


@pytest.mark.parametrize("how", ["keyboard", "SIGTERM"])
def test_an_interruption_says_in_a_sentence_how_to_go_on(how, here, monkeypatch, capfd):
    arguments = [_recipe("1_lm"), *SHORT.split(), "--use_cpu=true", "--max_steps=4", "--enable_jit_checkpoint=true"]
    step = RosettaTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 2:
            if how == "keyboard":
                raise KeyboardInterrupt
            self._stop.jit_manager.is_checkpoint_requested = True
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(RosettaTrainer, "training_step", interrupted)
        main(arguments)
    last = "checkpoint-2" if how == "keyboard" else "checkpoint-3"
    said = capfd.readouterr().err
    assert f"The same command goes on from outputs/miniature/rosetta/1_lm/{last}." in said and "Traceback" not in said
    assert exit.value.code == (130 if how == "keyboard" else 143)
    assert not (here / "model").exists()
    main(arguments)
    resumed = _weights(here / "model")
    shutil.rmtree(here)
    main(arguments)
    assert all(torch.equal(weight, resumed[name]) for name, weight in _weights(here / "model").items())


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("3_mmu", ["--model=outputs/miniature/inputs/dense"], "`vision_tower` must be given"),
        ("4_t2i", ["--model=outputs/miniature/inputs/dense"], "`vision_tower` must be given"),
        ("1_lm", ["--model=outputs/miniature/inputs/vision_tower"], "must be a dense Qwen3 or a Rosetta"),
        ("1_lm", ["--model=nowhere"], "`model`: 'nowhere' cannot be read"),
        ("1_lm", ["--per_device_train_batch_size=3"], "`global_batch_size` must be a multiple"),
    ],
)
def test_errors_before_anything_is_loaded(recipe, arguments, message, here):
    with pytest.raises(SystemExit, match=message):
        main([_recipe(recipe), *arguments, "--use_cpu=true"])
    assert not here.exists()


def test_missing_data(here):
    recipe = here.parents[1] / "mine.yaml"
    recipe.write_text(f"extends: {_recipe('1_lm')}\nuse_cpu: true\ndata: [{{task: lm, path: nowhere.jsonl}}]\n")
    with pytest.raises(SystemExit, match="there is no file nowhere.jsonl"):
        main([str(recipe)])
    assert not here.exists()
