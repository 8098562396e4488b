"""Experts of 4 and 8 bits: how large and how wrong they are, and never left out silently."""

import pytest
import torch
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaQuantizationConfig
from modeling_rosetta.quantization_rosetta import experts_of, quantized, unpacked
from tests.conftest import tiny_model
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


IDS = torch.arange(24).view(2, 12)
GROUP = 8


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "Rosetta"
    tiny_pipeline().save_pretrained(folder)
    return folder


def load(folder, bits: int | None = None, **kwargs) -> RosettaForCausalLMAndImageGeneration:
    if bits is not None:
        kwargs["quantization_config"] = {"quant_method": "rosetta", "bits": bits, "group_size": GROUP}
    return RosettaForCausalLMAndImageGeneration.from_pretrained(folder, **kwargs).eval()


def experts_bytes(model) -> int:
    return sum(weight.nbytes for experts in experts_of(model).values() for weight in experts.parameters())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_wrong_by_half_a_level_of_its_group(bits, dtype):
    weight = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, 0, :GROUP] = 0.5  # all alike
    packed, scale, zero = quantized(weight, bits, GROUP)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 10, 64 * bits // 8) and scale.dtype == dtype
    error = (unpacked(packed, scale, zero, 64).float() - weight.float()).abs().unflatten(-1, (-1, GROUP)).amax(-1)
    rounding = 4 * torch.finfo(dtype).eps * weight.abs().max()
    assert (error <= scale.float() / 2 + rounding).all() and error[0, 0, 0] == 0


@torch.no_grad()
@pytest.mark.parametrize(("bits", "size", "error"), [(4, 0.51, 0.2), (8, 0.76, 0.02)])
def test_the_experts_are_as_small_and_as_exact_as_their_bits(bits, size, error, saved):
    plain, small = load(saved, dtype=torch.bfloat16), load(saved, bits, dtype=torch.bfloat16)
    assert experts_bytes(small) < size * experts_bytes(plain)
    others = [p.dtype for name, p in small.named_parameters() if ".experts." not in name]
    assert set(others) == {torch.bfloat16} and small.dtype == torch.bfloat16
    assert small(IDS).logits.dtype == torch.bfloat16
    small = load(saved, bits)
    expected = load(saved)(IDS).logits
    wrong = float((small(IDS).logits - expected).norm() / expected.norm())
    assert 0 < wrong < error
    for implementation in ("eager", "batched_mm"):  # beside grouped_mm
        small.set_experts_implementation(implementation)
        assert float((small(IDS).logits - expected).norm() / expected.norm()) == pytest.approx(wrong, rel=0.05)


def test_by_default_4_bits_are_less_than_a_third_of_bf16():
    parts = quantized(torch.randn(2, 8, 128).bfloat16(), 4, RosettaQuantizationConfig().group_size)
    assert sum(part.nbytes for part in parts) == 2 * 8 * 128 * 2 * 5 / 16


class ForLinearLayersConfig(QuantizationConfigMixin):
    def __init__(self, modules_to_not_convert=None, quant_method="linear"):
        self.modules_to_not_convert, self.quant_method = modules_to_not_convert, quant_method


class ForLinearLayers(HfQuantizer):
    """As bitsandbytes and others do, it leaves alone what is no `nn.Linear`."""

    is_trainable = True

    def is_serializable(self):
        return True


def test_a_quantisation_that_does_not_reach_the_experts_is_an_error(saved, monkeypatch):
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "linear", ForLinearLayersConfig)
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "linear", ForLinearLayers)
    with pytest.raises(ValueError, match="ForLinearLayersConfig did not reach the experts, .*% of the weights"):
        load(saved, quantization_config=ForLinearLayersConfig())
    load(saved, quantization_config=ForLinearLayersConfig(modules_to_not_convert=["experts", "lm_head"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 3}, "`bits` must be 4 or 8"),
        ({"bits": "4"}, "`bits` must be 4 or 8"),
        ({"group_size": 0}, "`group_size` must be"),
        ({"group_size": 7}, "`group_size` must be"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RosettaQuantizationConfig(**arguments)


def test_a_group_that_does_not_divide_a_row_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`group_size` must divide the"):
        load(tmp_path, quantization_config=RosettaQuantizationConfig(group_size=46))
