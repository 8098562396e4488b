"""What the card tells to do works as it is printed there."""

import configparser
import re
from pathlib import Path

import pytest
from transformers import pipeline

from hub_upload import model_card
from modeling_rosetta import unmount
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline
from trainer import RosettaTrainer


def code(card, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card.text, re.DOTALL | re.MULTILINE)


def test_its_examples_run(folder, monkeypatch, capsys):
    def train_a_step(trainer, train=RosettaTrainer.train):
        trainer.args.max_steps, trainer.args.per_device_train_batch_size = 1, 1
        return train(trainer)

    monkeypatch.setattr(RosettaTrainer, "train", train_a_step)
    monkeypatch.chdir(folder.parent)  # where the id in the card leads to the folder
    names = {}
    load, *others = code(model_card(folder))
    exec(compile(load, "the card", "exec"), names)
    names["samples"] = [names["processor"].training_sample("a stone")] * 2
    for block in others:
        exec(compile(block, "the card", "exec"), names)
    assert len(others) == 3 and names["image"].size == (64, 64) and capsys.readouterr().out


@pytest.mark.parametrize("left_out", [[], ["vae"], ["vae", "vit"]])
def test_its_task_is_a_pipeline_of_transformers(left_out, tmp_path):
    parts = tiny_pipeline()
    parts.processor.image_processor.patch_size = parts.transformer.config.vision_config.patch_size
    for name in left_out:
        unmount(parts.transformer, name, processor=parts.processor)
    folder = tmp_path / "Tiny"
    parts.vae = None
    parts.save_pretrained(folder)
    answers = pipeline(model_card(folder).data.pipeline_tag, model=str(folder), trust_remote_code=True)
    assert answers([{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}], max_new_tokens=2)


def test_its_requirements_are_those_of_the_project(folder):
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    needed = {line.replace(" ", "") for line in setup["options"]["install_requires"].split("\n") if line}
    (install,) = code(model_card(folder), "bash")
    assert set(re.findall(r'"([^"]+)"', install)) <= needed
