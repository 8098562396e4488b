"""The miniature's benchmarks, one of each kind that Table 1 has, made of digits and English it was not trained on."""

import re

import numpy as np
import torch
from PIL import Image

from trainer.evaluation import Choices, Drawing, Question, Sample, Task, accuracy
from trainer.evaluation.drawing.frechet import frechet_distance

from .classifier import DigitClassifier
from .conversations import drawing_prompts, question_only, questions_and_answers, read_answer
from .digits import load_digits
from .english import load_english
from .evaluation import GUIDANCE_SCALE, NUM_INFERENCE_STEPS


PROTOCOL = "miniature"
NUM_PASSAGES = 200
NUM_CONTINUATIONS = 4
CONTINUED_WORDS = 8
DRAWINGS_PER_PROMPT = 4


def continuation() -> Task:
    """Multiple choice by likelihood: which words go on a paragraph, its own or those of three others."""
    words = [paragraph.split() for paragraph in load_english().held_out]
    words = [paragraph for paragraph in words if len(paragraph) >= 2 * CONTINUED_WORDS][:NUM_PASSAGES]
    ends = [" " + " ".join(paragraph[-CONTINUED_WORDS:]) for paragraph in words]
    samples = []
    for i, paragraph in enumerate(words):
        right = i % NUM_CONTINUATIONS
        options = [ends[(i + (place - right) * 7) % len(ends)] for place in range(NUM_CONTINUATIONS)]
        samples.append(Sample(str(i), Choices(" ".join(paragraph[:-CONTINUED_WORDS]), options), right))
    return Task("miniature_continuation", PROTOCOL, samples, likeliest)


def question() -> Task:
    """Generation with extraction: a question about each held-out digit, answered with the digit or its name."""
    digits = load_digits()[1]
    questions = [text for text, _ in questions_and_answers(0)]
    samples = [
        Sample(str(i), Question(question_only(image, questions[i % len(questions)]), 16), int(label))
        for i, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True))
    ]
    return Task("miniature_question", PROTOCOL, samples, named_digit)


def yes_no() -> Task:
    """Yes or no: whether it can read the digit, of which every second one is no digit but its pixels, shuffled. The
    miniature was shown digits only; a model that says yes to all of them has an F1 of 2/3."""
    digits, choose = load_digits()[1], np.random.default_rng(0)
    samples = []
    for i, image in enumerate(digits.images):
        is_digit = i % 2 == 0
        if not is_digit:
            pixels = np.asarray(image).reshape(-1, 3)
            image = Image.fromarray(choose.permutation(pixels).reshape(np.asarray(image).shape))
        conversation = question_only(image, "Can you read this digit?")
        samples.append(Sample(str(i), Question(conversation, 16), "yes" if is_digit else "no"))
    return Task("miniature_yes_no", PROTOCOL, samples, first_yes_or_no, f1_of_yes)


def drawing() -> Task:
    """Drawings that a classifier recognises, and the Frechet distance of its features to those of held-out scans."""
    train, held_out = load_digits()
    classifier = DigitClassifier(train)
    reference = torch.from_numpy(classifier.features(held_out.images))
    settings = {"num_inference_steps": NUM_INFERENCE_STEPS, "guidance_scale": GUIDANCE_SCALE}
    asked = [(digit, prompt) for digit in range(10) for prompt in DRAWINGS_PER_PROMPT * drawing_prompts(digit)]
    samples = [Sample(str(i), Drawing(prompt, i, settings), digit) for i, (digit, prompt) in enumerate(asked)]

    def score(sample: Sample, image: Image.Image) -> dict:
        right = int(classifier.predict([image])[0] == sample.answer)
        return {"right": right, "features": classifier.features([image])[0].tolist()}

    def metrics(outcomes: list[dict]) -> dict[str, float]:
        if len(outcomes) < 2:  # of which there is no covariance
            return accuracy(outcomes)
        features = torch.tensor([outcome["features"] for outcome in outcomes], dtype=torch.float64)
        return {**accuracy(outcomes), "frechet_distance": frechet_distance(features, reference)}

    return Task("miniature_drawing", PROTOCOL, samples, score, metrics)


def likeliest(sample: Sample, likelihoods: list[float]) -> dict:
    given = int(np.argmax(likelihoods))
    return {"right": int(given == sample.answer), "given": given}


def named_digit(sample: Sample, text: str) -> dict:
    given = read_answer(text)
    return {"right": int(given == sample.answer), "given": text, "missed": given is None}


def first_yes_or_no(sample: Sample, text: str) -> dict:
    found = re.findall(r"\b(yes|no)\b", text.lower())
    given = found[0] if found else None
    return {
        "right": int(given == sample.answer),
        "given": text,
        "said": given,
        "asked": sample.answer,
        "missed": not found,
    }


def f1_of_yes(outcomes: list[dict]) -> dict[str, float]:
    """The F1 of "yes", then accuracy."""
    hits = sum(outcome["said"] == outcome["asked"] == "yes" for outcome in outcomes)
    said, asked = (sum(outcome[key] == "yes" for outcome in outcomes) for key in ("said", "asked"))
    return {"f1": 2 * hits / (said + asked) if said + asked else 0.0, **accuracy(outcomes)}


BENCHMARKS = {
    "miniature_continuation": continuation,
    "miniature_question": question,
    "miniature_yes_no": yes_no,
    "miniature_drawing": drawing,
}
