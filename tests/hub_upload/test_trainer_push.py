"""The trainer publishes what it trained: a complete repository whose card tells of the training."""

import json

import pytest

from tests.hub_upload.conftest import REPO
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline
from trainer import RosettaDataCollator, RosettaTrainer, RosettaTrainingArguments


@pytest.fixture
def trained(tmp_path):
    """A trainer after a step on text, and the VAE of its model."""
    pipe = tiny_pipeline()
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    arguments = RosettaTrainingArguments(
        tmp_path / "run",
        max_steps=1,
        logging_steps=1,
        learning_rate=3e-4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        hub_model_id=REPO,
    )
    trainer = RosettaTrainer(
        pipe.transformer,
        arguments,
        train_dataset=[pipe.processor.training_sample("a rosetta stone")] * 8,
        data_collator=RosettaDataCollator(pipe.processor.tokenizer.pad_token_id, max_length=64),
        processing_class=pipe.processor,
    )
    trainer.train()
    return trainer, pipe.vae


def test_a_release_is_complete_and_tells_of_the_training(trained, hub, loads):
    trainer, vae = trained
    commit = trainer.push_to_hub(vae=vae, stage="LM", data="three words", release="v1", license="apache-2.0")
    repository = hub.repositories[REPO]
    assert repository.tags == {"v1": commit.oid} and len(repository.commits) == 2
    tree = repository.commits[commit.oid].tree
    assert {"config.json", "model_index.json", "vae/config.json", "SHA256SUMS", "training.json"} <= set(tree)
    assert not any("optimizer" in path or "training_args" in path for path in tree)
    (stage,) = json.loads(tree["training.json"])["stages"]
    assert (stage["stage"], stage["data"], stage["steps"]) == ("LM", "three words", 1)
    card = tree["README.md"].decode()
    assert "three words" in card and "0.0003" in card
    assert len(loads) == 1  # it was tried before it was sent


def test_stages_accumulate(trained, hub, loads, tmp_path):
    trainer, vae = trained
    trainer.push_to_hub(vae=vae, stage="LM")
    trainer.model.name_or_path = str(tmp_path / "run" / "repository")  # as if it had been loaded from there
    commit = trainer.push_to_hub(vae=vae, stage="MMU")
    stages = json.loads(hub.repositories[REPO].commits[commit.oid].tree["training.json"])["stages"]
    assert [stage["stage"] for stage in stages] == ["LM", "MMU"]


@pytest.mark.parametrize("missing", ["vae", "hub_model_id", "processing_class", "blocking"])
def test_what_is_missing_is_named_before_anything_is_saved(missing, trained, hub, tmp_path):
    trainer, vae = trained
    arguments = {"vae": vae}
    if missing == "vae":
        arguments = {}
    elif missing == "blocking":
        arguments["blocking"] = False
    elif missing == "hub_model_id":
        trainer.args.hub_model_id = None
    else:
        trainer.processing_class = trainer.processing_class.tokenizer
    with pytest.raises(ValueError, match=f"`(args.)?{missing}`"):
        trainer.push_to_hub(**arguments)
    assert not (tmp_path / "run" / "repository").exists() and not hub.requests


def test_checkpoints_are_not_pushed(tmp_path):
    with pytest.raises(ValueError, match="`push_to_hub` must be False"):
        RosettaTrainingArguments(tmp_path, push_to_hub=True, use_cpu=True)
