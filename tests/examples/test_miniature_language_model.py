import pytest
import torch

from examples.miniature import language_model
from examples.miniature.language_model import held_out_loss, pack_text


def test_packing_keeps_every_paragraph_and_marks_its_end(tokenizer, english):
    paragraphs = english.held_out[:100]
    rows = pack_text(tokenizer, paragraphs)
    assert rows.shape[1] == 128
    text = tokenizer.decode(rows.flatten())
    whole = "".join(f"{paragraph}<|endoftext|>" for paragraph in paragraphs)
    assert whole.startswith(text) and len(whole) - len(text) < 128 * 20


@pytest.fixture(scope="module")
def trained(tokenizer, english):
    rows = pack_text(tokenizer, english.train[:500])
    return [language_model.train_language_model(tokenizer, rows, num_steps=15) for _ in range(2)]


def test_training_lowers_the_held_out_loss(trained, tokenizer, english):
    rows = pack_text(tokenizer, english.held_out[:100])
    torch.manual_seed(0)
    untrained = type(trained[0])(language_model.dense_config(tokenizer))
    assert held_out_loss(trained[0], rows) < held_out_loss(untrained, rows) - 0.5


def test_held_out_loss_is_the_models_own(trained, tokenizer, english):
    rows = pack_text(tokenizer, english.held_out)[:70]
    with torch.no_grad():
        expected = trained[0](input_ids=rows, labels=rows).loss.item()
    assert held_out_loss(trained[0], rows) == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_gives_the_same_model(trained):
    first, second = (model.state_dict() for model in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)
