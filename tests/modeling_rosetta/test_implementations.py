"""Attention and experts implementations by name, and weights that are packed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, mount
from tests.conftest import TINY, sample, tiny_model
from tests.modeling_rosetta.test_mounting import SPEECH


def attention_of(model) -> tuple[str, str]:
    return model.config._attn_implementation, model.model.visual.config._attn_implementation


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ("sdpa", "sdpa")),
        ("sdpa", ("sdpa", "sdpa")),
        ("eager", ("eager", "eager")),
        ("flex_attention", ("flex_attention", "sdpa")),
        ({"": "flex_attention", "vision_config": "sdpa"}, ("flex_attention", "sdpa")),
        ({"": "sdpa", "vision_config": "eager"}, ("sdpa", "eager")),
    ],
    ids=str,
)
def test_attention_by_name(asked, expected, tmp_path):
    model = RosettaForCausalLMAndImageGeneration._from_config(RosettaConfig(**TINY), attn_implementation=asked)
    assert attention_of(model) == expected
    model.save_pretrained(tmp_path)
    assert attention_of(model.from_pretrained(tmp_path, attn_implementation=asked)) == expected
    if asked is not None:
        other = tiny_model()
        other.set_attn_implementation(asked)
        assert attention_of(other) == expected


@torch.no_grad()
def test_flex_attention_is_asked_for_masks_and_attention_of_the_decoder_alone(monkeypatch):
    """With sdpa's functions in place of its own, which a CPU takes long to compile."""
    model, layers, attention = tiny_model(), [], ALL_ATTENTION_FUNCTIONS["sdpa"]
    batch = {k: v for k, v in sample("tug").items() if "labels" not in k}
    expected = model(**batch)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "flex_attention", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS,
        "flex_attention",
        lambda module, *args, **kwargs: layers.append(module) or attention(module, *args, **kwargs),
    )
    model.set_attn_implementation("flex_attention")
    assert torch.equal(model(**batch).velocity, expected.velocity)
    assert layers == [layer.self_attn for layer in model.model.layers]


@pytest.mark.parametrize("sizes", [{"intermediate_size": 30}, {"hidden_size": 34}], ids=str)
def test_sizes_that_grouped_products_cannot_take_run_one_by_one(sizes):
    """Rows of weights must be multiples of 16 bytes, in 16 bits too."""
    if "hidden_size" in sizes:
        text = RosettaConfig().token_types[:1]
        config = RosettaConfig(**{**TINY, **sizes}, token_types=text, expert_pools={"text": 3})
        model, batch = RosettaForCausalLMAndImageGeneration(config), sample("t")
    else:
        model, batch = tiny_model(**sizes), sample("tug")
    assert model.config._experts_implementation == "eager"
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(**batch).loss.backward()
    model.set_experts_implementation("grouped_mm")
    assert model.config._experts_implementation == "eager"
    assert tiny_model().config._experts_implementation == "grouped_mm"


class PackedLinear(nn.Module):
    """A linear layer as bitsandbytes makes it: its weight is bytes, and it computes in the type of its input."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.unpacked = linear.weight.detach()
        self.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return F.linear(x, self.unpacked.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def packed(model):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, PackedLinear(module))
    return model


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_read_and_draw(dtype):
    """No input is cast to the type of a weight that may be packed."""

    def model():
        return mount(tiny_model(timestep_token_id=111), SPEECH, num_experts=4).to(dtype)

    batch = {k: v for k, v in sample("tugtt").items() if "labels" not in k}
    batch["input_ids"][0, 3] = 111
    batch["token_type_ids"][0, -3:] = 3
    batch |= {"audio_features": torch.randn(3, 5), "audio_timesteps": torch.rand(3)}
    expected, output = model()(**batch), packed(model())(**batch)
    for name in ("logits", "velocity"):
        assert getattr(output, name).dtype == dtype
        torch.testing.assert_close(getattr(output, name), getattr(expected, name))
    torch.testing.assert_close(output.feature_velocities["audio"], expected.feature_velocities["audio"])
