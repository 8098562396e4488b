"""LoRA: on the parts asked for and on no others, and the same numbers after saving, loading and merging."""

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model

from modeling_rosetta import mount
from tests.conftest import CONFIGS, TINY, sample, tiny_model
from tests.modeling_rosetta.test_mounting import AUDIO
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline
from trainer.lora import lora_config


DRAW = {"prompt": "a red stone", "num_inference_steps": 2, "output_type": "latent"}
BATCH = {k: v for k, v in sample("tugt").items() if "labels" not in k}
CHOICES = {
    "attention": {"parts": "attention"},
    "shared_expert": {"parts": "shared_expert"},
    "pools": {"parts": "pools", "token_types": ["vit", "vae"]},
    "all": {"parts": ["attention", "shared_expert", "pools"]},
    "mounted": {"parts": "pools", "token_types": "audio"},
}


def stir(model):
    """Adapters start as zeros: this makes them heard."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def adapted(name: str) -> set[str]:
    model = mount(tiny_model(), AUDIO, 4)
    peft_model = get_peft_model(model, lora_config(model.config, **CHOICES[name], r=2))
    return {n for n, p in peft_model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("attention", ["self_attn.streams.shared."]),
        ("shared_expert", ["mlp.shared_experts.global."]),
        ("pools", ["mlp.pools.vit.experts.", "mlp.pools.vae.experts."]),
        ("mounted", ["mlp.pools.audio.experts."]),
    ],
)
def test_adapters_are_where_they_were_asked_for_in_every_layer(name, inside):
    names = adapted(name)
    assert names and all("lora_" in n and any(part in n for part in inside) for n in names)
    for layer in range(TINY["num_hidden_layers"]):
        assert all(any(f"layers.{layer}.{part}" in n for n in names) for part in inside)


@pytest.mark.parametrize("choice", ["attention", "shared_expert", "pools", "all"])
def test_saved_loaded_and_merged_it_is_the_same_model(choice, tmp_path):
    model = tiny_model()
    plain = model(**BATCH)
    peft_model = stir(get_peft_model(copy.deepcopy(model), lora_config(model.config, **CHOICES[choice], r=2)))
    expected = peft_model(**BATCH)
    assert (expected.logits - plain.logits).abs().max() > 1e-3
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(loaded(**BATCH).logits, expected.logits, rtol=0, atol=1e-6)
    # Merged weights are rounded: to 1e-6 of the largest logit in fp32, so compare in float64.
    loaded.base_model.model.set_experts_implementation("eager")
    expected = loaded.double()(**BATCH)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**BATCH).logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(**BATCH).velocity, expected.velocity, rtol=0, atol=1e-6)


def test_transformers_own_adapters_draw_and_generate(tmp_path):
    """`add_adapter`, `save_pretrained` and `load_adapter` on the model inside a pipeline."""
    pipe, fresh = tiny_pipeline(), tiny_pipeline()
    model = pipe.transformer
    plain = pipe(**DRAW, latents=noise()).images
    model.add_adapter(lora_config(model.config, ["attention", "pools"], r=2))
    stir(model)
    drawn = pipe(**DRAW, latents=noise()).images
    ids = model.generate(torch.arange(6)[None], max_new_tokens=4, do_sample=False)
    assert (drawn - plain).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    fresh.transformer.load_adapter(str(tmp_path))
    torch.testing.assert_close(fresh(**DRAW, latents=noise()).images, drawn, rtol=0, atol=1e-6)
    assert torch.equal(fresh.transformer.generate(torch.arange(6)[None], max_new_tokens=4, do_sample=False), ids)
    fresh.transformer.disable_adapters()
    torch.testing.assert_close(fresh(**DRAW, latents=noise()).images, plain, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="without adapters"):
        mount(model, AUDIO, 4)


def test_a_repository_takes_adapters_and_a_pipeline_a_peft_model(tmp_path):
    """On the model that `trust_remote_code` loads."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    peft_model = stir(get_peft_model(pipe.transformer, lora_config(pipe.transformer.config, "pools", r=2)))
    pipe.transformer = peft_model
    drawn = pipe(**DRAW, latents=noise()).images
    peft_model.peft_config["default"].base_model_name_or_path = str(tmp_path / "model")
    peft_model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True).eval()
    assert type(loaded.base_model.model) is not type(peft_model.base_model.model)
    again = tiny_pipeline()
    again.transformer = loaded
    torch.testing.assert_close(again(**DRAW, latents=noise()).images, drawn, rtol=0, atol=1e-6)
    ids = torch.arange(6)[None]
    assert torch.equal(
        loaded.generate(input_ids=ids, max_new_tokens=4), peft_model.generate(input_ids=ids, max_new_tokens=4)
    )
    with pytest.raises(ValueError, match="merge or unwrap"):
        pipe.save_pretrained(tmp_path / "wrapped")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"parts": "router"}, "`parts` must be among"),
        ({"parts": "pools", "token_types": "video"}, "`names` must be among"),
        ({"parts": "attention", "token_types": "vae"}, "nothing that serves"),
        ({"parts": "pools", "lora_dropout": 0.1}, "`lora_dropout` must be 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        lora_config(CONFIGS["rosetta"](**TINY), **arguments)
