"""What is said about digits: prompts to draw them, questions about them, and how to read an answer."""

import random
import re

import torch
from PIL import Image


DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = (
    "a handwritten {word}",
    "the digit {word}",
    "a drawing of {a_word}",
    "the number {word}",
    "draw {a_word}",
)
QUESTIONS = (
    ("Which digit is this?", "{digit}"),
    ("Which number do you see?", "I see {a_word}."),
    ("What does the picture show?", "A handwritten {word}."),
    ("Which digit was written here, in a word?", "{word}"),
    ("Can you read this digit?", "Yes, it is {a_word}."),
)


def drawing_prompts(label: int) -> list[str]:
    """All prompts for one digit."""
    return [_fill(prompt, label) for prompt in PROMPTS]


def questions_and_answers(label: int) -> list[tuple[str, str]]:
    """All questions about a picture of one digit, with their answers."""
    return [(question, _fill(answer, label)) for question, answer in QUESTIONS]


def drawing(latents: torch.Tensor, label: int, choose: random.Random) -> list[dict]:
    """A conversation in which the digit, given as latents (C, h, w), is drawn."""
    return [
        {"role": "user", "content": choose.choice(drawing_prompts(label))},
        {"role": "assistant", "content": [{"type": "latents", "latents": latents}]},
    ]


def question(image: Image.Image, label: int, choose: random.Random) -> list[dict]:
    """A conversation in which a question about a picture of the digit is answered."""
    text, answer = choose.choice(questions_and_answers(label))
    return [*question_only(image, text), {"role": "assistant", "content": answer}]


def question_only(image: Image.Image, text: str) -> list[dict]:
    """A conversation that waits for its answer."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def read_answer(answer: str) -> int | None:
    """The digit that an answer names, `None` if it names none or several."""
    named = set(re.findall(rf"\d|\b(?:{'|'.join(DIGIT_WORDS)})\b", answer.lower()))
    digits = {int(name) if name.isdigit() else DIGIT_WORDS.index(name) for name in named}
    return digits.pop() if len(digits) == 1 else None


def all_phrases() -> list[str]:
    """Everything that is said about digits and the names of the roles, often enough to weigh beside the English that
    a tokenizer learns from."""
    phrases = ["user\n", "assistant\n"] * 10
    phrases += [prompt for label in range(10) for prompt in drawing_prompts(label)]
    phrases += [text for label in range(10) for pair in questions_and_answers(label) for text in pair]
    return 100 * phrases


def sums() -> list[str]:
    """Sums in words. English alone leaves the rarer names of digits alike to a small language model, and a model that
    builds on it then takes long to draw a five for one and a seven for the other."""
    pairs = [(a, b) for a in range(10) for b in range(10 - a)]
    sentences = []
    for a, b in pairs:
        first, second, total = DIGIT_WORDS[a], DIGIT_WORDS[b], DIGIT_WORDS[a + b]
        sentences.append(f"The sum of {first} and {second} is {total}.")
        sentences.append(f"If you take {first} from {total}, {second} is left.")
    return 20 * sentences


def _fill(template: str, label: int) -> str:
    word = DIGIT_WORDS[label]
    return template.format(digit=label, word=word, a_word=f"{'an' if word == 'eight' else 'a'} {word}")
