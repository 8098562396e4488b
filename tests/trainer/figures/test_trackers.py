"""Trackers get figures in groups, drawings and answers."""

import json

import numpy as np
import pytest
from data_files import conversation, file_model, file_processor, file_vae, picture, write_texts
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TensorBoardCallback

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.figures.samples_in_training import SamplesInTraining, read_samples
from trainer.figures.trackers import GroupedTensorBoard, GroupedTrackio, GroupedWandb, grouped
from trainer.stages.recipe import SampleSettings


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "train/loss"),
        ("text_loss", "train/text_loss"),
        ("learning_rate", "train/learning_rate"),
        ("lm_english_text_loss", "sources/lm_english_text_loss"),
        ("eval_english_text_loss", "eval/english_text_loss"),
        ("test_loss", "test/loss"),
        ("capacity_rate_und", "experts/capacity_rate_und"),
        ("expert_load_highest_und", "experts/expert_load_highest_und"),
        ("router_entropy_und", "experts/router_entropy_und"),
        ("learning_rate_base", "learning_rate/base"),
        ("maop_cosine", "maop/cosine"),
        ("skipped_records", "skipped/records"),
        ("num_tokens_text", "counts/tokens_text"),
        ("mfu", "speed/mfu"),
    ],
)
def test_groups(name, expected):
    assert grouped({name: 1.5}) == {expected: 1.5}


def test_an_event_file_read_back(tmp_path, trainer_of, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "seen.png").write_bytes(picture(3))
    record = {"image": "seen.png", "conversations": conversation(1)}
    (tmp_path / "questions.jsonl").write_text(json.dumps(record))
    processor = file_processor()
    sources = [
        DataSource("lm", str(write_texts(tmp_path / "texts", 10))),
        DataSource("mmu", str(tmp_path / "questions.jsonl")),
    ]
    trainer = trainer_of(
        file_model(processor),
        RosettaDataStream(sources, processor, 60),
        data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
        max_steps=2,
        report_to="tensorboard",
    )
    settings = SampleSettings(2, ["a drawing"], [{"question": "what?"}])
    callbacks = trainer.callback_handler.callbacks
    trainer.add_callback(SamplesInTraining(settings, processor, file_vae(), callbacks))
    trainer.train()

    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for name, figure in grouped(logs[-1]).items():
        if name not in ("train/step", "train/epoch"):
            assert events.Scalars(name)[-1].step == 2
            assert events.Scalars(name)[-1].value == pytest.approx(figure, rel=1e-6, nan_ok=True)
    assert {tag.split("/")[0] for tag in events.Tags()["scalars"]} == {
        *("train", "sources", "experts", "counts", "learning_rate", "maop", "speed", "skipped")
    }
    assert events.Scalars("train/train_runtime")[0].step == 2

    sample = read_samples(tmp_path)[0]
    (drawn,) = events.Images("drawings/0 a drawing")
    on_disk = np.asarray(Image.open(tmp_path / sample["images"][0]))
    (tmp_path / "drawn.png").write_bytes(drawn.encoded_image_string)
    assert drawn.step == 2 and (np.asarray(Image.open(tmp_path / "drawn.png")) == on_disk).all()
    (answer,) = events.Tensors("answers/0 what?/text_summary")
    assert answer.step == 2 and answer.tensor_proto.string_val[0].decode() == sample["answers"][0]


def test_a_writer_that_is_there_is_kept(trainer_of, tiny_model, tmp_path):
    callback, other = TensorBoardCallback("a writer"), type("Own", (TensorBoardCallback,), {})("a writer")
    trainer_of(tiny_model(), callbacks=[callback, other])
    assert type(callback) is GroupedTensorBoard and callback.tb_writer == "a writer"
    assert type(other).__name__ == "Own"


@pytest.mark.parametrize(("callback_class", "name"), [(GroupedWandb, "_wandb"), (GroupedTrackio, "_trackio")])
def test_what_wandb_and_trackio_are_told(callback_class, name, trainer_of, tiny_model):
    class Recorder:
        said = []
        log = said.append

        def Image(image, caption):
            return image, caption

        def Table(columns, data):
            return columns, data

    callback = callback_class.__new__(callback_class)
    callback.__dict__.update({name: Recorder, "_initialized": True})
    trainer = trainer_of(tiny_model())
    callback.on_log(trainer.args, trainer.state, trainer.control, logs={"text_loss": 1.0})
    callback.show(["a"], ["image"], [{"question": "q"}], ["answer"], 3)
    assert Recorder.said == [
        {"train/text_loss": 1.0, "train/global_step": 0},
        {
            "drawings/0": ("image", "a"),
            "answers": (["question", "answer"], [["q", "answer"]]),
            "train/global_step": 3,
        },
    ]
