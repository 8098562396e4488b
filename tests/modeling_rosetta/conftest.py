import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_rosetta.processing_rosetta import RosettaProcessor


FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def layout_examples() -> dict:
    """Token layouts, positions and size tables of the authors' code."""
    return json.loads((FIXTURES / "layout_examples.json").read_text())


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """One token for each character, and the special tokens."""
    return AutoTokenizer.from_pretrained(FIXTURES / "tiny_tokenizer")


@pytest.fixture(scope="session")
def make_processor(tiny_tokenizer):
    """A processor of 64 pixels; images to understand keep their size, rounded to tokens of 32 pixels."""

    def make(**kwargs) -> RosettaProcessor:
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=16,
            size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        return RosettaProcessor(image_processor, **{"tokenizer": tiny_tokenizer, "base_size": 64, **kwargs})

    return make


@pytest.fixture(scope="session")
def processor(make_processor):
    return make_processor()
