"""How well the miniature answers questions about digits, and how it is asked to draw some."""

import torch
from PIL import Image

from .classifier import DigitClassifier
from .conversations import drawing_prompts, question_only, questions_and_answers, read_answer
from .digits import Digits


BATCH_SIZE = 100
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 5.0
DRAWINGS_PER_PROMPT = 4


@torch.no_grad()
def answers(model, processor, images: list[Image.Image], questions: list[str]) -> list[str]:
    """The greedy answer to one question about each image."""
    conversations = [question_only(image, text) for image, text in zip(images, questions, strict=True)]
    texts = []
    for first in range(0, len(conversations), BATCH_SIZE):
        inputs = processor.apply_chat_template(
            conversations[first : first + BATCH_SIZE],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        generated = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        new_tokens = generated[:, inputs["input_ids"].shape[1] :]
        texts += processor.batch_decode(new_tokens, skip_special_tokens=True)
    return texts


def question_accuracy(model, processor, digits: Digits) -> float:
    """Share of the images about which a question, each of them in turn, is answered with the right digit."""
    questions = [text for text, _ in questions_and_answers(0)]
    asked = [questions[i % len(questions)] for i in range(len(digits.images))]
    given = answers(model, processor, digits.images, asked)
    right = [read_answer(text) == label for text, label in zip(given, digits.labels, strict=True)]
    return float(sum(right) / len(right))


def draw(pipeline, prompts: list[str], seed: int) -> list[Image.Image]:
    """One image for each prompt."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompts,
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(seed),
    ).images


def drawing_accuracy(pipeline, classifier: DigitClassifier, seed: int = 1) -> float:
    """Share of 200 drawings, some for each prompt of each digit, that are recognised as that digit."""
    asked = [(digit, prompt) for digit in range(10) for prompt in DRAWINGS_PER_PROMPT * drawing_prompts(digit)]
    images = draw(pipeline, [prompt for _, prompt in asked], seed)
    return classifier.accuracy(images, [digit for digit, _ in asked])
