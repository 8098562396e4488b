"""A run on three ranks, one of which is killed: with what it goes on with, each token is trained on once an epoch."""

import json
import os
import random
import signal
from itertools import islice
from pathlib import Path

import pytest
from data_files import file_model, file_processor
from ranks import run_on_ranks
from torch.multiprocessing import ProcessExitedException
from transformers import TrainerCallback

from trainer import (
    DataSource,
    RosettaDataCollator,
    RosettaDataStream,
    RosettaTrainer,
    RosettaTrainingArguments,
    last_complete_checkpoint,
)
from trainer.data import StreamLoader


MAX_LENGTH, NUM_RANKS, NUM_WORKERS = 64, 3, 2
STEPS, SAVE_STEPS, KILLED_AFTER = 24, 4, 10


class RecordingTrainer(RosettaTrainer):
    """Notes the samples of each batch that is trained on, as what was done after how many steps."""

    def training_step(self, model, inputs, *args):
        ids, numbers = inputs["input_ids"].flatten(), inputs["sequence_ids"].flatten()
        samples = [ids[numbers == number].tolist() for number in range(numbers.max() + 1)]
        with open(Path(self.args.output_dir, f"seen_{self.args.process_index}.jsonl"), "a") as file:
            file.write(f"{json.dumps([self.state.global_step, samples])}\n")
        return super().training_step(model, inputs, *args)


class Kill(TrainerCallback):
    """Kills the second rank as the system does, which gives it no time for anything."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


def _train(folder: Path, is_killed: bool):
    processor = file_processor()
    trainer = RecordingTrainer(
        file_model(processor),
        RosettaTrainingArguments(
            str(folder / "run"),
            max_steps=STEPS,
            save_steps=SAVE_STEPS,
            per_device_train_batch_size=1,
            dataloader_num_workers=NUM_WORKERS,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=RosettaDataStream([DataSource("lm", str(folder / "documents.jsonl"))], processor, MAX_LENGTH),
        data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id, MAX_LENGTH),
        callbacks=[Kill()] if is_killed else None,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "run"))


def _seen(folder: Path, rank: int) -> list[tuple[int, list[list[int]]]]:
    return [tuple(json.loads(line)) for line in (folder / "run" / f"seen_{rank}.jsonl").read_text().splitlines()]


def _undisturbed(folder: Path, processor, rank: int) -> list[list[list[int]]]:
    """The samples of the batches of a reader that nobody disturbs, each token once an epoch (test_documents.py)."""
    stream = RosettaDataStream([DataSource("lm", str(folder / "documents.jsonl"))], processor, MAX_LENGTH)
    stream.rank, stream.num_ranks = rank, NUM_RANKS
    loader = StreamLoader(stream, lambda rows: {"rows": rows}, num_workers=NUM_WORKERS, batch_size=1)
    return [[sample["input_ids"].tolist() for sample in batch["rows"][0]] for batch in islice(loader, STEPS)]


def test_every_token_once_an_epoch_through_a_kill(tmp_path):
    choose, processor = random.Random(0), file_processor()
    texts = ["".join(choose.choices("abcdefghij", k=choose.choice((10, 40, 70, 130)))) for _ in range(30)]
    (tmp_path / "documents.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_on_ranks(_train, NUM_RANKS, tmp_path, True)
    last = int(last_complete_checkpoint(tmp_path / "run").rsplit("-", 1)[1])
    assert last == KILLED_AFTER // SAVE_STEPS * SAVE_STEPS
    before = [[entry for entry in _seen(tmp_path, rank) if entry[0] < last] for rank in range(NUM_RANKS)]
    lost = [len(_seen(tmp_path, rank)) for rank in range(NUM_RANKS)]
    assert lost[1] == KILLED_AFTER  # trained on what the checkpoint does not know of
    run_on_ranks(_train, NUM_RANKS, tmp_path, False)

    trained_on = []
    for rank in range(NUM_RANKS):
        batches = [*before[rank], *_seen(tmp_path, rank)[lost[rank] :]]
        assert [step for step, _ in batches] == list(range(STEPS))
        trained_on += (own := [samples for _, samples in batches])
        assert own == _undisturbed(tmp_path, processor, rank)
    begun = {tuple(sample[:10]) for samples in trained_on for sample in samples}
    assert begun >= {tuple(processor.tokenizer(text).input_ids[:10]) for text in texts}  # an epoch, and more
