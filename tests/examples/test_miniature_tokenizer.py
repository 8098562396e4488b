import pytest
from transformers import AutoTokenizer, Qwen2Tokenizer

from examples.miniature.tokenizer import QWEN_TOKENS, ROSETTA_TOKENS, train_tokenizer


def test_any_text_comes_back(tokenizer, english):
    for text in [*english.held_out[:50], "  two spaces,\n\ttabs, 12345, é 字 🙂"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_one_token_each(tokenizer):
    tokens = QWEN_TOKENS + ROSETTA_TOKENS
    ids = [tokenizer(f"a{token}b").input_ids[1:-1] for token in tokens]
    assert ids == [[tokenizer.convert_tokens_to_ids(token)] for token in tokens]
    assert len({i for (i,) in ids}) == len(tokens) == 45
    assert tokenizer.decode(tokenizer("".join(tokens) + "rest").input_ids, skip_special_tokens=True) == "rest"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_vocabulary_is_full_and_always_the_same(tokenizer, english):
    assert len(tokenizer) == 1024
    assert train_tokenizer(english.train[:500]).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("text", ["<|im_start|>user\nthe digit 7<|im_end|>", "<｜cfg｜> and so on"])
def test_a_saved_tokenizer_is_loaded_by_its_name(tokenizer, tmp_path, text):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, Qwen2Tokenizer)
    assert loaded(text).input_ids == tokenizer(text).input_ids
