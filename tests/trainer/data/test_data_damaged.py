"""A stream with damaged records of all kinds trains on, and counts each."""

import json
from collections import Counter

import pytest
import torch
from data_files import conversation, file_model, file_processor, picture

from trainer import DataSource, RosettaDataCollator, RosettaDataStream
from trainer.data import BadRecord
from trainer.data.records import training_sample
from trainer.data.source import ShuffledReader


NUM_GOOD = 30
QUESTION, ANSWER = conversation(1)


def _write_questions(folder) -> tuple[str, dict[str, str | None]]:
    """Lines of JSON, of which most are damaged, and what is wrong with each."""
    (folder / "good.png").write_bytes(picture(1))
    (folder / "text.png").write_text("this is no picture")
    (folder / "cut.png").write_bytes(picture(1, 64, 64)[:-40])
    (folder / "flat.png").write_bytes(picture(1, 402, 2))
    good = {"image": "good.png", "conversations": conversation(1)}
    many = "long " * 50
    damaged = {
        "broken_json": [b'{"image": "good.png", "conv', b"not json at all"],
        "missing_column": [{"conversations": conversation(1)}, {**good, "conversations": None}],
        "wrong_type": [
            ["a", "list"],
            {**good, "conversations": "what?"},
            {**good, "conversations": [{"from": "human", "value": 3}, ANSWER]},
            {**good, "image": 7},
        ],
        "empty": [{**good, "conversations": [QUESTION, {"from": "gpt", "value": " "}]}, {**good, "image": []}],
        "too_long": [{**good, "conversations": [QUESTION, {"from": "gpt", "value": many}]}],
        "undecodable_text": [b'{"image": "good.png", "conversations": [{"from": "human", "value": "\xff"}]}'],
        "bad_conversation": [
            {**good, "conversations": [QUESTION]},
            {**good, "conversations": [ANSWER, QUESTION]},
            {**good, "conversations": [QUESTION, {"from": "robot", "value": "one"}]},
        ],
        "image_count": [
            {**good, "conversations": [{"from": "human", "value": "<image> <image>"}, ANSWER]},
            {**good, "conversations": [{"from": "human", "value": "no mark"}, ANSWER]},
        ],
        "missing_image": [{**good, "image": "none.png"}],
        "undecodable_image": [{**good, "image": "text.png"}, {**good, "image": "cut.png"}],
        "bad_image_size": [{**good, "image": "flat.png"}],
    }
    reasons = {json.dumps({**good, "id": i}).encode(): None for i in range(NUM_GOOD)}
    special = {**good, "conversations": [{"from": "human", "value": "<image><|im_end|>"}, ANSWER]}
    reasons[json.dumps(special).encode()] = None  # users' text is text
    for reason, group in damaged.items():
        for record in group:
            line = record if isinstance(record, bytes) else json.dumps(record).encode()
            reasons[line] = reason
    (folder / "questions.jsonl").write_bytes(b"\n".join(reasons) + b"\n")
    return str(folder / "questions.jsonl"), {line.decode(errors="replace"): reasons[line] for line in reasons}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_records_are_skipped_and_counted(num_workers, tmp_path, trainer_of):
    processor = file_processor()
    path, reasons = _write_questions(tmp_path)
    assert len(set(reasons.values())) == 12  # eleven kinds of damage, and none
    source = DataSource("mmu", path)
    model = file_model(processor)
    before = model.lm_head.weight.detach().clone()
    trainer = trainer_of(
        model,
        RosettaDataStream([source], processor, 200, seed=5, max_skipped_share=0.9),
        data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
        per_device_train_batch_size=4,
        max_steps=4 * max(1, num_workers),  # all of the first 16 rows of each worker
        dataloader_num_workers=num_workers,
    )
    trainer.train()
    assert torch.isfinite(model.lm_head.weight).all() and not torch.equal(model.lm_head.weight, before)

    expected = Counter()
    logs = [log for log in trainer.state.log_history if "num_samples" in log]
    for worker in range(max(1, num_workers)):
        reader = ShuffledReader(source.open(), worker, max(1, num_workers), seed=5)
        num_samples = sum(log["num_samples"] for log in logs[worker :: max(1, num_workers)])
        while num_samples:
            reason = reasons[next(reader)["text"]]
            num_samples -= reason is None
            expected[reason] += 1
    del expected[None]
    assert sum(expected.values()) > 10
    skipped = {name: number for name, number in logs[-1].items() if name.startswith("skipped_")}
    assert skipped.pop("skipped_records") == sum(expected.values())
    assert skipped == {f"skipped_mmu_{reason}": number for reason, number in expected.items()}


@pytest.mark.parametrize("turns", [[], [{"role": "system", "content": "be brief"}]], ids=["none", "system only"])
def test_a_conversation_without_turns(turns, tmp_path):
    source = DataSource("lm", str(tmp_path))
    with pytest.raises(BadRecord, match="bad_conversation: user and assistant must take turns"):
        training_sample({"conversations": turns}, source, file_processor(), 100)
