"""The lessons of the edits say what they should, and their judge knows right from wrong."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from examples.miniature.digits import Digits, load_digits
from examples.miniature.edits import ASK, BOLD, EXACT, NEXT, TURNED, Lessons, edited_right
from examples.miniature.vision import image_processor
from modeling_rosetta import RosettaProcessor
from tests.modeling_rosetta.conftest import FIXTURES


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    processor = RosettaProcessor(
        image_processor(),
        AutoTokenizer.from_pretrained(FIXTURES / "tiny_tokenizer"),
        base_size=16,
        latent_patch_size=4,
        layout="in_order",
        image_embeds_from=["noisy_latents", "pixel_values"],
    )
    _, digits = load_digits()
    few = Digits(digits.scans[:60], digits.labels[:60], digits.images[:60])

    def encode(images):  # the mean of the image, so that it can be told
        return torch.stack([torch.full((4, 4, 4), float(np.asarray(image).sum())) for image in images])

    return Lessons(processor, few, encode, dropout=0.0)


def test_edits_have_their_source_and_their_target(lessons):
    seen, choose = set(), random.Random(0)
    for _ in range(20):
        user, assistant = lessons.processor.conversation_of(lessons.edit(choose))
        image, text = user["content"]
        seen.add(text["text"])
        i = lessons.latents.flatten(1)[:, 0].tolist().index(float(image["latents"].flatten()[0]))
        (drawn,) = assistant["content"]
        if text["text"] == NEXT:
            of_label = lessons.latents[lessons.of_label[(lessons.digits.labels[i] + 1) % 10]]
            assert any(torch.equal(drawn["latents"], latent) for latent in of_label)
        else:
            assert torch.equal(drawn["latents"], lessons.edited[text["text"]][i])
        assert "pixel_values" in image
    assert seen == {BOLD, TURNED, NEXT}


def test_a_word_comes_before_its_drawing_and_after_it(lessons):
    user, assistant = lessons.processor.conversation_of(lessons.tell(random.Random(0)))
    assert [item["type"] for item in assistant["content"]] == ["text", "latents"]
    *_, question, answer = lessons.processor.conversation_of(lessons.ask(random.Random(1)))
    assert question["content"] == [{"type": "text", "text": ASK}] and answer["content"][0]["type"] == "text"


@pytest.mark.parametrize("text", EXACT)
def test_the_judge_of_edits(text, lessons):
    images = lessons.digits.images
    exact = [EXACT[text](image) for image in images]
    assert edited_right(exact, images, text) > 0.9  # few are their own mirror, or twins
    assert edited_right(images, images, text) < 0.1
    assert edited_right([*exact[1:], exact[0]], images, text) < 0.1
