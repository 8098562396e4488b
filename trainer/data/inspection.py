"""What becomes of the records of a stream, before anything is trained on them."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import torch

from .bad_records import BadRecord
from .samples import SampleReader, pieces
from .source import DataSource
from .stream import RosettaDataStream, Row


NUM_EXAMPLES = 8  # samples of a source, and records that were skipped of a reason


@dataclass
class SourceReport:
    """
    Args:
        source (`DataSource`)
        num_records (`int`): that were read.
        num_samples (`int`): that they became, a long document several.
        tokens (`Counter`): numbers of tokens, by what their type embeds from.
        num_targets (`int`): tokens of text that are to be predicted.
        num_images (`int`): to understand or to draw.
        longest (`int`): tokens of the longest sample.
        skipped (`list[dict]`): each the [`BadRecord.entry`] of a record that cannot be trained on.
        examples (`list[dict]`): the first samples.
    """

    source: DataSource
    num_records: int = 0
    num_samples: int = 0
    tokens: Counter = field(default_factory=Counter)
    num_targets: int = 0
    num_images: int = 0
    longest: int = 0
    skipped: list[dict] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)

    def add(self, sample: dict[str, torch.Tensor], embeds_from: list[str]):
        self.num_samples += 1
        self.tokens.update(embeds_from[i] for i in sample["token_type_ids"].tolist())
        self.num_targets += int((sample["labels"][1:] != -100).sum())
        self.num_images += sum(len(sample[key]) for key in ("image_grid_thw", "latent_grid_hw") if key in sample)
        self.longest = max(self.longest, len(sample["input_ids"]))
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(sample)

    def lines(self) -> list[str]:
        """In words, for a terminal."""
        number = self.num_records - len(self.skipped)
        lines = [f"{self.source}, weight {self.source.weight:g}"]
        lines.append(f"  records   {self.num_records:,} read, {number:,} to train on, {len(self.skipped):,} skipped")
        for reason, count in Counter(entry["reason"] for entry in self.skipped).most_common():
            first = next(entry for entry in self.skipped if entry["reason"] == reason)
            lines.append(f"    {count:,} {reason}, the first {first['place']}: {first['detail']}")
        if self.num_samples:
            tokens = ", ".join(f"{count:,} from {source}" for source, count in self.tokens.items())
            mean = self.tokens.total() / self.num_samples
            lines.append(f"  samples   {self.num_samples:,}, {mean:,.0f} tokens each, the longest {self.longest:,}")
            lines.append(f"  tokens    {tokens}; {self.num_targets:,} targets; {self.num_images:,} images")
        return lines


@dataclass
class StreamReport:
    """
    Args:
        max_length (`int`): tokens of a row.
        sources (`list[SourceReport]`)
        rows (`list[Row]`): the first ones that would be trained on.
        stopped (`str`, *optional*): why there are no more.
    """

    max_length: int
    sources: list[SourceReport]
    rows: list[Row]
    stopped: str | None = None

    @property
    def fill(self) -> float:
        """Share of the positions of the rows that hold a token."""
        tokens = sum(len(sample["input_ids"]) for row in self.rows for sample in row.samples)
        return tokens / (self.max_length * len(self.rows)) if self.rows else 0.0

    def shares(self) -> list[tuple[float, float]]:
        """For each source, its share of the samples and of the tokens of the rows."""
        samples, tokens = Counter(), Counter()
        for row in self.rows:
            for index, sample in zip(row.sources, row.samples, strict=True):
                samples[index] += 1
                tokens[index] += len(sample["input_ids"])
        return [
            (samples[i] / max(1, samples.total()), tokens[i] / max(1, tokens.total()))
            for i in range(len(self.sources))
        ]

    def __str__(self) -> str:
        lines = []
        for report, (of_samples, of_tokens) in zip(self.sources, self.shares(), strict=True):
            lines += [*report.lines(), f"  share     {of_samples:.1%} of the samples, {of_tokens:.1%} of the tokens"]
        lines.append(f"{len(self.rows)} rows of {self.max_length:,} tokens are {self.fill:.1%} full.")
        if self.stopped:
            lines.append(f"A run would stop: {self.stopped}")
        return "\n".join(lines)


def inspect_stream(stream: RosettaDataStream, num_records: int, num_rows: int = 64) -> StreamReport:
    """
    Reads as training would, and trains nothing.

    Args:
        stream (`RosettaDataStream`)
        num_records (`int`): of each source, in the order of its first epoch; fewer if it has fewer.
        num_rows (`int`, defaults to 64)
    """
    sources = []
    for index, (source, records) in enumerate(zip(stream.sources, stream.records, strict=True)):
        settings = (stream.processor, stream.max_length, 1.0, 0, 1)
        reader = SampleReader(source, records, *settings, seed=stream.seed + index)
        sources.append(_source_report(source, reader, num_records, stream.processor.embeds_from))
    report = StreamReport(stream.max_length, sources, [])
    try:
        report.rows.extend(islice(stream, num_rows))
    except RuntimeError as error:
        report.stopped = str(error)
    return report


def _source_report(source: DataSource, reader: SampleReader, num_records: int, embeds_from: list[str]) -> SourceReport:
    report = SourceReport(source)
    while report.num_records < num_records:
        sample = reader.read()
        if reader.state_dict()["epoch"] > 0:  # it has no more
            break
        report.num_records += 1
        if isinstance(sample, BadRecord):
            report.skipped.append(sample.entry(source))
            continue
        for piece in pieces(sample, reader.max_length):
            report.add(piece, embeds_from)
    return report


__all__ = ["SourceReport", "StreamReport", "inspect_stream"]
