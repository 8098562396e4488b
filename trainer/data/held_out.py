"""What a run is evaluated on: held-out records, packed once into rows."""

from .bad_records import BadRecord
from .packing import BestFit
from .samples import SampleReader, pieces
from .source import DataSource


def held_out_rows(source: DataSource, processor, max_length: int, num_samples: int, seed: int = 0) -> list[list[dict]]:
    """
    Samples of a source in rows, as a data set for [`RosettaDataCollator`] that is the same on all ranks.

    Args:
        source (`DataSource`)
        processor (`RosettaProcessor`)
        max_length (`int`): most tokens of a row.
        num_samples (`int`): fewer if the source has fewer. They are drawn by the seed, from a stream the first ones.
        seed (`int`, defaults to 0)

    Raises:
        ValueError: if no record of the source can be used.
        OSError: if there is nothing at its path.
    """
    reader = SampleReader(source, source.open(), processor, max_length, 1.0, 0, 1, seed)
    packer, number, skipped = BestFit(max_length), 0, None
    while number < num_samples:
        sample = reader.read()
        if reader.state_dict()["epoch"] > 0:  # it has no more
            break
        if isinstance(sample, BadRecord):
            skipped = sample
            continue
        for piece in pieces(sample, max_length):
            packer.add(piece, len(piece["input_ids"]))
            number += 1
    if not packer.rows:
        raise ValueError(f"`validation`: no record of {source} can be used, the last was {skipped}.")
    return packer.rows


__all__ = ["held_out_rows"]
