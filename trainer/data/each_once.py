"""An evaluation on several ranks, in which each sample counts once."""

import contextlib

from torch.utils.data import Dataset


REPEATED = "is_repeated"  # in a batch that only keeps a rank in step: nothing of it counts


class EvenlyShared(Dataset):
    """
    A data set with nothing (`None`) behind its end, so that whole batches of it can be dealt to all ranks. accelerate
    would deal its first samples again.

    Args:
        dataset (`Dataset` or `list`)
        multiple (`int`): of samples: the ranks times the batch size.
    """

    def __init__(self, dataset, multiple: int):
        self.dataset, self.length = dataset, -(-len(dataset) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.dataset[index] if index < len(self.dataset) else None


class WithoutNothing:
    """
    A collator of what is there in a batch. One of nothing is the first sample of the data set, `REPEATED`.

    Args:
        collator (`Callable`): of samples.
        dataset (`Dataset` or `list`)
    """

    def __init__(self, collator, dataset):
        self.collator, self.dataset = collator, dataset

    def __call__(self, samples: list) -> dict:
        there = [sample for sample in samples if sample is not None]
        return dict(self.collator(there)) if there else {**self.collator([self.dataset[0]]), REPEATED: True}


@contextlib.contextmanager
def each_once(trainer, eval_dataset):
    """The data set to evaluate on as it is to be dealt to the ranks of a trainer, whose collator knows of it while it
    makes the loader. A stream is dealt as it is."""
    dataset = trainer.eval_dataset if eval_dataset is None else eval_dataset
    dataset = trainer.eval_dataset[dataset] if isinstance(dataset, str) else dataset
    if trainer.args.world_size == 1 or not hasattr(dataset, "__len__"):
        yield eval_dataset
        return
    collator, trainer.data_collator = trainer.data_collator, WithoutNothing(trainer.data_collator, dataset)
    try:
        yield EvenlyShared(dataset, trainer.args.world_size * trainer.args.eval_batch_size)
    finally:
        trainer.data_collator = collator


__all__ = ["REPEATED", "EvenlyShared", "WithoutNothing", "each_once"]
