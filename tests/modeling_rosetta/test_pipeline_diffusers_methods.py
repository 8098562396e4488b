"""What users of diffusers call beside the pipeline itself."""

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from peft import LoraConfig

from modeling_rosetta.pipeline import RosettaPipeline
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def draw(pipe, prompt="a red stone", **kwargs) -> torch.Tensor:
    asked = {"output_type": "latent", "num_inference_steps": 2, "latents": noise()}
    return pipe(prompt, **{**asked, **kwargs}).images


def save_adapter(folder, seed: int):
    model = tiny_pipeline().transformer
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return [save_adapter(tmp_path_factory.mktemp("adapters") / str(seed), seed) for seed in (1, 2)]


def test_adapters_are_loaded_switched_scaled_and_taken_off(adapters):
    pipe = tiny_pipeline()
    plain = draw(pipe)
    pipe.load_lora_weights(adapters[0])
    pipe.load_lora_weights(str(adapters[1]), adapter_name="second")
    assert pipe.get_list_adapters() == {"transformer": ["default", "second"]}
    assert pipe.get_active_adapters() == ["second"]
    second = draw(pipe)
    assert not torch.allclose(second, plain, atol=1e-3)
    torch.testing.assert_close(draw(pipe, attention_kwargs={"scale": 0.0}), plain)
    half = draw(pipe, attention_kwargs={"scale": 0.5})
    assert torch.equal(draw(pipe), second) and not torch.allclose(half, second, atol=1e-3)
    pipe.set_adapters(["second", "default"], [0.5, 0.0])
    torch.testing.assert_close(draw(pipe), half)
    pipe.set_adapters("default")
    first = draw(pipe)
    assert not torch.allclose(first, second, atol=1e-3)
    pipe.disable_lora()
    assert torch.equal(draw(pipe), plain)
    pipe.enable_lora()
    pipe.delete_adapters("second")
    assert torch.equal(draw(pipe), first)
    with pytest.raises(ValueError, match="`adapter_name`: an adapter 'default' is loaded already"):
        pipe.load_lora_weights(adapters[0], adapter_name="default")
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), plain)
    pipe.load_lora_weights(adapters[0])
    assert torch.equal(draw(pipe), first)


def test_a_fused_adapter_is_in_the_weights_that_are_saved(adapters, tmp_path):
    pipe = tiny_pipeline()
    plain = draw(pipe)
    pipe.load_lora_weights(adapters[0])
    with_adapter = draw(pipe)
    pipe.fuse_lora()
    torch.testing.assert_close(draw(pipe), with_adapter, rtol=0, atol=1e-4)
    pipe.unfuse_lora()
    pipe.disable_lora()
    torch.testing.assert_close(draw(pipe), plain, rtol=0, atol=1e-4)
    pipe.enable_lora()
    pipe.save_lora_weights(tmp_path / "adapter")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused")
    loaded = type(pipe.transformer).from_pretrained(tmp_path / "fused")
    pipe = RosettaPipeline(**{**pipe.components, "transformer": loaded.eval()})
    torch.testing.assert_close(draw(pipe), with_adapter, rtol=0, atol=1e-4)
    again = tiny_pipeline()
    again.load_lora_weights(tmp_path / "adapter")
    assert torch.equal(draw(again), with_adapter)


@pytest.mark.parametrize("source", [{"transformer.lora_A.weight": torch.zeros(2, 2)}, "."])
def test_what_is_no_adapter_is_named(source, pipe, tmp_path):
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must"):
        pipe.load_lora_weights(source if isinstance(source, dict) else tmp_path)


def test_layerwise_casting_halves_the_weights_the_experts_too():
    pipe = tiny_pipeline()
    pipe.transformer.to(torch.bfloat16)
    expected = draw(pipe, guidance_scale=1.0)
    before = sum(weight.nbytes for weight in pipe.transformer.parameters())
    pipe.transformer.enable_layerwise_casting()
    dtypes = {name: weight.dtype for name, weight in pipe.transformer.named_parameters()}
    for _ in range(2):
        drawn = draw(pipe, guidance_scale=1.0)
        assert {name: weight.dtype for name, weight in pipe.transformer.named_parameters()} == dtypes
    assert all(dtype == torch.float8_e4m3fn for name, dtype in dtypes.items() if "experts" in name)
    assert sum(weight.nbytes for weight in pipe.transformer.parameters()) < 0.62 * before
    error = (drawn - expected).norm() / expected.norm()
    assert 0 < error < 0.2


def test_an_attention_backend_by_the_name_that_diffusers_has_for_it(pipe):
    expected = draw(pipe)
    pipe.transformer.set_attention_backend("_native_math")
    assert pipe.transformer.config._attn_implementation == "eager"
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-4)
    pipe.transformer.reset_attention_backend()
    assert torch.equal(draw(pipe), expected)
    with pytest.raises(ValueError, match="`backend` must be one of .*'native'"):
        pipe.transformer.set_attention_backend("flash")


def test_the_vae_works_in_slices_and_tiles(pipe):
    asked = {"prompt": ["x", "y"], "latents": noise(2), "output_type": "pt"}
    expected = draw(pipe, **asked)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(draw(pipe, **asked), expected, rtol=0, atol=1e-5)
    pipe.vae.enable_tiling()
    latents = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.vae.tile_latent_min_size = 8
    pipe.vae.tile_sample_min_size = 64
    decoded = []
    decode, pipe.vae.decoder.forward = (
        pipe.vae.decoder.forward,
        lambda z, *rest: decoded.append(z.shape[-1]) or decode(z, *rest),
    )
    images = draw(pipe, **{**asked, "latents": latents}, height=128, width=128)
    assert images.shape == (2, 3, 128, 128) and images.isfinite().all() and max(decoded) == 8
    del pipe.vae.decoder.forward
    pipe.vae.disable_slicing()
    pipe.vae.disable_tiling()


def test_a_pipeline_from_a_pipeline_shares_its_parts(pipe):
    other = RosettaPipeline.from_pipe(pipe, scheduler=type(pipe.scheduler)(shift=3.0))
    assert other.transformer is pipe.transformer and other.scheduler.config.shift == 3.0
    assert not torch.allclose(draw(other), draw(pipe), atol=1e-3)
    assert isinstance(pipe.vae, AutoencoderKLFlux2)


def test_a_variant_is_refused_where_it_is_saved(pipe, tmp_path):
    with pytest.raises(ValueError, match="`variant`.*one copy of the weights"):
        pipe.save_pretrained(tmp_path / "half", variant="fp16")


def test_nothing_is_pushed_with_an_empty_card(pipe, tmp_path):
    with pytest.raises(NotImplementedError, match="hub_upload push"):
        pipe.transformer.push_to_hub("someone/model")
    with pytest.raises(ValueError, match="`push_to_hub`.*hub_upload push"):
        pipe.transformer.save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())
