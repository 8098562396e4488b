"""BLIP-VQA: whether what a prompt names is seen in its drawing (T2I-CompBench, Huang et al. 2023)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from .drawings import read_drawing


SIDE = 480  # pixels
MAX_TOKENS = 35  # of a question
SEPARATOR = "##"  # of the questions of a prompt


@dataclass(frozen=True)
class Blip:
    """A BLIP that answers questions about images, with what prepares both for it."""

    model: BlipForQuestionAnswering
    tokenizer: Any
    image_processor: BlipImageProcessorPil

    @classmethod
    def from_pretrained(cls, repo: str | Path, device: str | torch.device = "cpu") -> "Blip":
        """
        Args:
            repo (`str` or `Path`): folder or Hub id; the benchmark's is `Salesforce/blip-vqa-capfilt-large`.
            device (`str` or `torch.device`, defaults to `"cpu"`)

        Raises:
            ValueError: if it cannot be loaded.
        """
        try:
            model = BlipForQuestionAnswering.from_pretrained(repo, dtype=torch.float32)
            size = {"height": SIDE, "width": SIDE}
            images = BlipImageProcessorPil.from_pretrained(repo, size=size)
            return cls(model.to(device).eval(), AutoTokenizer.from_pretrained(repo), images)
        except (OSError, ValueError) as error:
            raise ValueError(f"The BLIP model '{repo}' cannot be loaded: {error}") from error

    def yes(self, images: Sequence, questions: list[str]) -> list[float]:
        """p(yes) / (p(yes) + p(no)) of the first token of the answer to a question about each image, in [0, 1]."""
        ids = self.tokenizer(questions, truncation=True, max_length=MAX_TOKENS).input_ids
        answers = [0.0] * len(ids)
        # Questions of one length at a time: transformers' decoder also looks at what pads a shorter one.
        for length in {len(each) for each in ids}:
            members = [i for i, each in enumerate(ids) if len(each) == length]
            of_length = self._yes([images[i] for i in members], [ids[i] for i in members])
            for i, answer in zip(members, of_length, strict=True):
                answers[i] = answer
        return answers

    @torch.no_grad()
    def _yes(self, images: list, ids: list[list[int]]) -> list[float]:
        model, device, start = self.model, self.model.device, self.model.decoder_start_token_id
        pixels = self.image_processor([read_drawing(image) for image in images], return_tensors="pt").pixel_values
        questions = torch.tensor(ids, device=device)
        questions[:, 0] = start + 1  # [ENC], which BLIP has behind [DEC] and its encoder was trained with
        # BLIP was trained to answer at 480 pixels; repositories of transformers may hold its positions for 384.
        seen = model.vision_model(pixel_values=pixels.to(device), interpolate_pos_encoding=True).last_hidden_state
        read = model.text_encoder(input_ids=questions, encoder_hidden_states=seen)[0]
        starts = torch.full((len(ids), 1), start, device=device)
        logits = model.text_decoder(input_ids=starts, encoder_hidden_states=read).logits[:, -1]
        yes, no = (logits[:, self.tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
        return (yes - no).sigmoid().tolist()


def questions_of(record: dict, where: str = "A prompt") -> list[str]:
    """
    The questions of T2I-CompBench's records, `"a red book?##a blue mug?"`: one for each noun phrase of the prompt.

    Raises:
        ValueError: if there are none.
    """
    given = record.get("questions")
    questions = given.split(SEPARATOR) if isinstance(given, str) else given
    questions = [question.strip() for question in questions or [] if question.strip()]
    if not questions:
        raise ValueError(
            f"{where} needs `questions`, one for each of its noun phrases with {SEPARATOR} between, got {given!r}: "
            f"{record.get('prompt')!r}."
        )
    return questions


def blip_vqa_scores(images: Sequence, questions: list[list[str]], blip: Blip, batch_size: int = 32) -> list[float]:
    """
    Of each image the product of [`Blip.yes`] over its questions, in [0, 1].

    Args:
        images (`Sequence`): images or their files.
        questions (`list[list[str]]`): of each image, from [`questions_of`].
        blip ([`Blip`])
        batch_size (`int`, defaults to 32): questions at a time.
    """
    pairs = [(image, question) for image, own in zip(images, questions, strict=True) for question in own]
    answers: list[float] = []
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        answers += blip.yes([image for image, _ in some], [question for _, question in some])
    in_order = iter(answers)
    return [math.prod(next(in_order) for _ in own) for own in questions]


__all__ = ["Blip", "blip_vqa_scores", "questions_of"]
