import random

import pytest

from examples.miniature.conversations import (
    DIGIT_WORDS,
    PROMPTS,
    QUESTIONS,
    all_phrases,
    drawing,
    drawing_prompts,
    question,
    questions_and_answers,
    read_answer,
)


@pytest.mark.parametrize("label", range(10))
def test_prompts_and_answers_name_the_digit(label):
    assert [read_answer(prompt) for prompt in drawing_prompts(label)] == [label] * len(PROMPTS)
    assert [read_answer(answer) for _, answer in questions_and_answers(label)] == [label] * len(QUESTIONS)


def test_an_answer_names_one_digit_or_none():
    assert read_answer("I see a Seven.") == 7
    assert read_answer("seven, that is 7") == 7
    assert read_answer("three or five") is None
    assert read_answer("a picture") is None
    assert read_answer("17") is None
    assert read_answer("I see none of them.") is None


def test_questions_do_not_give_the_answer_away():
    texts = [[text for text, _ in questions_and_answers(label)] for label in range(10)]
    assert all(text == texts[0] for text in texts)
    assert all(read_answer(text) is None for text in texts[0])


def test_the_article_fits_the_word():
    said = " ".join(all_phrases())
    assert "an eight" in said
    assert not any(f"an {word}" in said for word in DIGIT_WORDS if word != "eight")


def test_the_same_choices_make_the_same_conversations():
    def conversations(seed):
        choose = random.Random(seed)
        return [make("x", label, choose) for label in range(10) for make in (drawing, question)]

    assert conversations(0) == conversations(0) != conversations(1)
