"""`generate` with each of transformers' caches, and its continuous batching."""

import contextlib

import pytest
import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, QuantizedLayer
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from tests.conftest import tiny_model
from tests.modeling_rosetta.test_generation import greedy, left_padded, prompt


@pytest.fixture(params=["t", "tut", "tgt", "padded"])
def inputs(request) -> dict:
    return left_padded([prompt("tut", 1), prompt("t", 2)]) if request.param == "padded" else prompt(request.param)


class NoStream(contextlib.nullcontext):
    def wait_stream(self, other):
        pass


@pytest.mark.parametrize("kind", ["static", "offloaded", "offloaded_static"])
def test_static_and_offloaded_caches(model, inputs, kind, monkeypatch):
    """Offloading is to a CPU, from a device with streams, which are made to be none here."""
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())
    assert torch.equal(greedy(model, inputs, cache_implementation=kind), greedy(model, inputs))


class PackedLayer(QuantizedLayer):
    """Quantises to 16 bits, as transformers' layer does to fewer with packages of its own."""

    def _quantize(self, tensor, axis):
        return tensor.half()

    def _dequantize(self, quantized):
        return quantized.float()


def test_a_quantised_cache(model, inputs):
    layers = [PackedLayer(residual_length=2) for _ in model.model.layers]
    assert torch.equal(greedy(model, inputs, past_key_values=Cache(layers=layers)), greedy(model, inputs))
    assert all(layer._quantized_keys.dtype == torch.float16 for layer in layers)


def test_a_cache_quantised_by_quanto(rosetta):
    pytest.importorskip("optimum.quanto")
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 4}
    cached = greedy(rosetta, prompt("t"), cache_implementation="quantized", cache_config=settings)
    assert torch.equal(cached, greedy(rosetta, prompt("t")))


@pytest.mark.parametrize("way", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny_model("moe")}], ids=str)
def test_assisted_decoding_gives_the_same(model, way):
    for kinds in ("t", "tut", "tgt"):
        assert torch.equal(greedy(model, prompt(kinds), **way), greedy(model, prompt(kinds)))


SETTINGS = {
    "generation_config": GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=115, pad_token_id=115),
    "continuous_batching_config": ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32),
    "warmup": False,
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_continuous_batching_of_text(model, attention):
    model.set_attn_implementation(attention)
    prompts = [torch.randint(0, 110, (length,)).tolist() for length in (5, 9, 3)]
    answers = {tuple(a.prompt_ids): a.generated_tokens for a in model.generate_batch(prompts, **SETTINGS).values()}
    for ids in prompts:
        alone = model.generate(torch.tensor([ids]), generation_config=SETTINGS["generation_config"])
        assert answers[tuple(ids)] == alone[0, len(ids) :].tolist()


def test_continuous_batching_of_images_is_refused(rosetta):
    prompts = [[5, 6], [5, 119, 119, 7]]
    with pytest.raises(ValueError, match="may hold text alone, but row 1 has the image token 119"):
        rosetta.generate_batch(prompts, **SETTINGS)
