import pytest

from examples.miniature.digits import load_digits
from examples.miniature.english import load_english
from examples.miniature.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def digits():
    """The train and the held-out digits."""
    return load_digits()


@pytest.fixture(scope="session")
def english():
    return load_english()


@pytest.fixture(scope="session")
def tokenizer(english):
    return train_tokenizer(english.train[:500])
