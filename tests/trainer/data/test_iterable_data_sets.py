"""Data sets that are not a [`RosettaDataStream`]: iterable ones, and the samplers of transformers."""

from functools import partial
from itertools import count

import pytest
import torch
from data_files import conversation, file_model, file_processor, picture
from datasets import IterableDataset
from ranks import run_on_ranks
from tiny_training import collate, record, tiny_model, tiny_trainer

from trainer import DataSource, RosettaDataCollator, RosettaTrainingArguments
from trainer.data.records import training_sample


class Records(torch.utils.data.IterableDataset):
    """Endless, with text in all and an image to draw in every third; the noise of rank and step comes with it."""

    def __iter__(self):
        return map(partial(record, noisy=True), count())


def _samples(number: int) -> list[dict]:
    processor = file_processor()
    records = [
        {"image": {"bytes": picture(i, 16 + 8 * (i % 3))}, "conversations": conversation(i)} for i in range(number)
    ]
    return [training_sample(one, DataSource("mmu", "nowhere"), processor, 200) for one in records]


def _weights(trainer) -> list[torch.Tensor]:
    trainer.train()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_an_iterable_data_set_trains_as_a_list_does(tmp_path):
    lists = tiny_trainer(tiny_model(), tmp_path / "a", [record(i, noisy=True) for i in range(16)])
    iterables = tiny_trainer(tiny_model(), tmp_path / "b", Records())
    assert all(map(torch.equal, _weights(lists), _weights(iterables)))


def test_a_streamed_data_set_of_images_trains(trainer_of):
    streamed = IterableDataset.from_generator(lambda: iter(_samples(8)))
    processor = file_processor()
    collator = RosettaDataCollator(processor.tokenizer.pad_token_id)
    trainer = trainer_of(file_model(processor), streamed, data_collator=collator, max_steps=2)
    trainer.train()
    assert [log["num_samples_vit"] for log in trainer.state.log_history if "loss" in log] == [4, 4]


def _rank(folder):
    seen = []

    def collating(records):
        seen.extend(one["input_ids"].tolist() for one in records)
        return collate(records)

    trainer = tiny_trainer(tiny_model(), folder, Records(), data_collator=collating, per_device_train_batch_size=2)
    trainer.train()
    torch.save(seen, folder / f"seen-{trainer.args.process_index}.pt")


def test_ranks_train_on_different_batches_of_an_iterable_data_set(tmp_path):
    run_on_ranks(_rank, 2, tmp_path)
    seen = [torch.load(tmp_path / f"seen-{rank}.pt")[:8] for rank in range(2)]  # four steps, then made in advance
    expected = [record(i)["input_ids"].tolist() for i in range(16)]
    assert [batch for i in range(0, 8, 2) for rank in range(2) for batch in seen[rank][i : i + 2]] == expected


def test_batches_cannot_be_dispatched(tmp_path):
    with pytest.raises(ValueError, match="`accelerator_config.dispatch_batches` must be None or False"):
        RosettaTrainingArguments(str(tmp_path), accelerator_config={"dispatch_batches": True})


def test_samples_are_grouped_by_length(trainer_of):
    processor = file_processor()
    samples = [processor.training_sample("a" * length) for length in (3, 50, 4, 51, 5, 52, 6, 53)]
    collator = RosettaDataCollator(processor.tokenizer.pad_token_id)
    trainer = trainer_of(
        file_model(processor), samples, data_collator=collator, max_steps=1, train_sampling_strategy="group_by_length"
    )
    trainer.processing_class = processor  # of whose inputs the first one is asked for its length
    first, *_ = (len(samples[i]["input_ids"]) for i in trainer._get_train_sampler())
    trainer.train()
    assert first == 54  # the longest, so that memory runs out at once if it does; one more for the end


@pytest.mark.parametrize("how", [{}, {"logging_strategy": "no"}, {"logging_steps": 100, "save_strategy": "no"}])
def test_a_run_without_a_target_stops(how, trainer_of, tmp_path):
    records = [{**record(i), "labels": torch.full((12,), -100)} for i in (1, 2, 4, 5)]
    with pytest.raises(ValueError, match="no sample so far has a target"):
        trainer_of(tiny_model(), records, **{"save_strategy": "steps", "save_steps": 2, "max_steps": 3, **how}).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_finished_run_that_goes_on_has_had_its_targets(trainer_of, tmp_path):
    saved = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer_of(tiny_model(), [record(i) for i in range(4)], **saved).train()
    trainer = trainer_of(tiny_model(), [record(i) for i in range(4)], **saved)
    assert trainer.train(resume_from_checkpoint=True).global_step == 2
