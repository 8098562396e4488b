"""A task of each kind for tiny models: scores are of a random model, so nothing is right by design."""

import numpy as np
from PIL import Image

from trainer.evaluation import Choices, Drawing, Question, Sample, Task


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32 + 32 * (seed % 2), 3), dtype=np.uint8))


def about(seed: int, text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": picture(seed)}, {"type": "text", "text": text}]}]


def likeliest(sample: Sample, likelihoods: list[float]) -> dict:
    return {"right": int(np.argmax(likelihoods) == sample.answer), "likelihoods": likelihoods}


def choices(number: int = 7) -> Task:
    """Continuations of one and of several tokens, texts and pictures, of different lengths."""
    samples = []
    for i in range(number):
        ends = list("abcd") if i % 2 else ["a", "bb", "ccc", "dd"]
        prompt = LETTERS[: 3 + 2 * i] if i % 3 else about(i, LETTERS[: 1 + i])
        samples.append(Sample(f"s{i}", Choices(prompt, ends), i % 4))
    return Task("choices", "test", samples, likeliest)


def questions(number: int = 7) -> Task:
    samples = [Sample(f"q{i}", Question(about(i, LETTERS[: 1 + 2 * i]), 4 + i % 3), "a") for i in range(number)]

    def score(sample: Sample, text: str) -> dict:
        return {"right": int(sample.answer in text), "given": text, "missed": not text}

    return Task("questions", "test", samples, score)


def drawings(number: int = 3) -> Task:
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    samples = [Sample(f"d{i}", Drawing(LETTERS[: 2 + i], i, settings)) for i in range(number)]

    def score(sample: Sample, image: Image.Image) -> dict:
        return {"mean": round(float(np.asarray(image).mean()), 3)}

    def mean(outcomes: list[dict]) -> dict[str, float]:
        return {"brightness": sum(outcome["mean"] for outcome in outcomes) / len(outcomes)}

    return Task("drawings", "test", samples, score, mean)
