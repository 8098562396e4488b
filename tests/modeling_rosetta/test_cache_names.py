import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from modeling_rosetta.cache_names_rosetta import CACHE
from tests.conftest import tiny_model


IDS = torch.arange(5, 13)[None]


def test_a_cache_goes_by_both_names():
    model = tiny_model().eval()
    expected = model(IDS).logits[:, 4:]
    for name in ("past_key_values", "cache"):
        for part in (model, model.model):
            cache = getattr(part(IDS[:, :4], use_cache=True), CACHE)
            assert cache.get_seq_length() == 4
            output = part(IDS[:, 4:], **{name: cache})
            assert cache.get_seq_length() == 8
            logits = output.logits if part is model else model.lm_head(output.last_hidden_state)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one of `cache` and `past_key_values`"):
        model(IDS[:, 4:], cache=cache, past_key_values=cache)


def test_outputs_have_the_name_of_the_installed_transformers():
    assert CACHE in CausalLMOutputWithPast.__dataclass_fields__
    output = tiny_model().eval()(IDS, use_cache=True)
    assert isinstance(output, CausalLMOutputWithPast) and CACHE in output
    assert output.past_key_values is output[CACHE]
