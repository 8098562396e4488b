"""Answers that are written together: each step gives all of them a token, and a new one joins at the next."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers.decoders import DecodeStream
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from modeling_rosetta import RosettaPipeline
from modeling_rosetta.cache_names_rosetta import CACHE
from modeling_rosetta.latent_codec_rosetta import with_latents

from .jobs import Job
from .rows import joined_caches, joined_columns, kept_rows


PADDED = ("input_ids", "token_type_ids", "attention_mask")


@dataclass
class Sampling:
    """
    Args:
        max_tokens (`int`)
        temperature (`float`): 0 takes the likeliest token each time.
        top_p (`float`), top_k (`int`): 1 and 0 leave all tokens.
        seed (`int`): of the first answer; each has the next.
        stop (`list[str]`): an answer ends before one of them.
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: list[str]

    def warpers(self) -> LogitsProcessorList | None:
        if self.temperature == 0:
            return None
        warpers = [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        warpers += [TopKLogitsWarper(self.top_k)] if self.top_k > 0 else []
        return LogitsProcessorList(warpers + ([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []))


@dataclass
class Piece:
    """Of the text of an answer; the last has a `finish_reason`, and says how many tokens were written."""

    number: int
    text: str
    finish_reason: str | None = None
    num_tokens: int = 0


class AnswerJob(Job):
    """
    Args:
        batch (`dict`): a conversation as the processor returns it.
        sampling ([`Sampling`])
        number (`int`): of answers.

    Tells [`Piece`]s.
    """

    def __init__(self, batch: dict, sampling: Sampling, number: int):
        super().__init__(number)
        self.batch, self.sampling = batch, sampling


class _Answer:
    """What one row has written."""

    def __init__(self, job: AnswerJob, number: int, tokenizer):
        self.job, self.number, self.tokenizer = job, number, tokenizer
        self.warpers = job.sampling.warpers()
        self.generator = torch.Generator().manual_seed((job.sampling.seed + number) % 2**63)
        self.tokens: list[int] = []
        self.text, self.told = "", 0  # decoded, and how much of it was told
        self.decoder = DecodeStream(skip_special_tokens=True)

    def choose(self, logits: torch.Tensor) -> int:
        """A token by its logits `(V,)`, for which it does not matter what else is chosen beside it."""
        if self.warpers is None:
            return int(logits.argmax())
        scores = self.warpers(None, logits[None].float().cpu())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))

    def add(self, token: int, ends: set[int]) -> bool:
        """Whether the answer goes on after this token."""
        if token in ends:
            return self._finish("stop")
        self.tokens.append(token)
        piece = self.decoder.step(self.tokenizer.backend_tokenizer, token)
        self.text += piece or ""
        if self._is_stopped(len(piece or "")):
            return self._finish("stop")
        if len(self.tokens) == self.job.sampling.max_tokens:
            return self._finish("length")
        # What may be the beginning of a stop string is held back.
        stops = self.job.sampling.stop
        starts = (stop[:i] for stop in stops for i in range(1, len(stop)))
        self._tell(len(self.text) - max((len(start) for start in starts if self.text.endswith(start)), default=0))
        return True

    def _is_stopped(self, num_new: int) -> bool:
        stops = self.job.sampling.stop
        if not num_new or not stops:
            return False
        first = max(len(self.text) - num_new - max(map(len, stops)), 0)
        found = [place for stop in stops if (place := self.text.find(stop, first)) >= 0]
        self.text = self.text[: min(found, default=None)]
        return bool(found)

    def _finish(self, reason: str) -> bool:
        whole = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if whole.startswith(self.text) and not self._is_cut(whole):
            self.text = whole  # with the beginning of a character that was not finished
        self._tell(len(self.text), reason)
        return False

    def _is_cut(self, whole: str) -> bool:
        return any(stop in whole for stop in self.job.sampling.stop)

    def _tell(self, end: int, reason: str | None = None):
        if end > self.told or reason is not None:
            self.job.tell(Piece(self.number, self.text[self.told : end], reason, len(self.tokens)))
            self.told = max(end, self.told)


class Answers:
    """
    Args:
        pipe ([`RosettaPipeline`])
        most (`int`): answers that are written together.
        metrics ([`Metrics`])
    """

    def __init__(self, pipe: RosettaPipeline, most: int, metrics):
        self.pipe, self.most, self.metrics, self.model = pipe, most, metrics, pipe.transformer
        processor = pipe.processor
        self.tokenizer = processor.tokenizer
        self.ends = {processor.turn_end_token_id, self.tokenizer.eos_token_id} - {None}
        marks = {*processor._vision_token_ids, processor.turn_start_token_id, processor.cfg_token_id}
        self.forbidden = torch.tensor(sorted(marks - self.ends - {None}), device=self.model.device)
        self.rows: list[_Answer] = []
        self.cache, self.mask = None, None  # of the rows, (B, S)
        self.tokens = self.positions = torch.empty(0)  # (B,), the last of each row, and where it stands

    @property
    def size(self) -> int:
        return len(self.rows)

    def jobs(self) -> list[Job]:
        return list({id(row.job): row.job for row in self.rows}.values())

    def step(self, new: Iterable[AnswerJob]):
        """All get a token, and new ones are read, which gives them their first."""
        self.leave([row.job for row in self.rows if row.job.is_left])
        if self.rows:
            with self.metrics.writing(len(self.rows)):
                self._write()
        if new := [job for job in new if not job.is_left]:
            self._read(new)

    def leave(self, jobs: list[Job]):
        self._keep([i for i, row in enumerate(self.rows) if row.job not in jobs])

    def _write(self):
        self.mask = F.pad(self.mask, (0, 1), value=1)
        logits = self.model(
            input_ids=self.tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions.expand(3, -1)[..., None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._choose(logits)

    def _read(self, jobs: list[AnswerJob]):
        """The prompts of new answers, together, then joins the others."""
        running = (self.rows, self.cache, self.mask, self.tokens, self.positions)
        keys = {key for job in jobs for key in job.batch}
        batch = {
            key: (joined_columns if key in PADDED else torch.cat)([job.batch[key] for job in jobs if key in job.batch])
            for key in keys
        }
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        with self.metrics.reading(int(batch["attention_mask"].sum())):
            output = self.model(**with_latents(batch, self.pipe.vae), use_cache=True, logits_to_keep=1)
        of_answers = [i for i, job in enumerate(jobs) for _ in range(job.size)]
        index = torch.tensor(of_answers, device=self.model.device)
        self.rows = [_Answer(job, number, self.tokenizer) for job in jobs for number in range(job.size)]
        self.cache = output[CACHE]
        self.positions = self.cache.next_positions.amax(-1)[index] - 1
        self.mask = kept_rows(self.cache, batch["attention_mask"], of_answers)
        self._choose(output.logits[index, -1])
        self._join(*running)

    def _choose(self, logits: torch.Tensor):
        """A token for each row; those that are finished leave."""
        logits = logits.index_fill(-1, self.forbidden, -torch.inf)
        likeliest = logits.argmax(-1).tolist()
        chosen = [
            token if row.warpers is None else row.choose(own)
            for row, own, token in zip(self.rows, logits, likeliest, strict=True)
        ]
        self.tokens = torch.tensor(chosen, device=self.model.device)
        self.positions = self.positions + 1
        kept = []
        for i, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            if row.add(token, self.ends):
                kept.append(i)
        self._keep(kept)

    def _keep(self, kept: list[int]):
        if len(kept) == len(self.rows):
            return
        left = [row.job for i, row in enumerate(self.rows) if i not in kept]
        self.rows = [self.rows[i] for i in kept]
        for job in left:
            if not any(row.job is job for row in self.rows):
                job.end()
        self.tokens, self.positions = self.tokens[kept], self.positions[kept]
        self.mask = kept_rows(self.cache, self.mask, kept) if kept else None

    def _join(self, rows: list[_Answer], cache, mask, tokens, positions):
        """Those that were there before."""
        if not self.rows:
            self.rows, self.cache, self.mask, self.tokens, self.positions = rows, cache, mask, tokens, positions
        elif rows:
            self.cache = joined_caches([cache, self.cache], self.model.config)
            self.mask = joined_columns([mask, self.mask])
            self.tokens, self.positions = torch.cat([tokens, self.tokens]), torch.cat([positions, self.positions])
            self.rows = [*rows, *self.rows]


__all__ = ["AnswerJob", "Answers", "Piece", "Sampling"]
