"""The authors' weights draw the authors' latents."""

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from modeling_rosetta.pipeline import RosettaPipeline
from tests.conftest import TINY
from tests.modeling_rosetta.tiny_pipeline import tiny_processor


FIXTURE = Path(__file__).parents[1] / "fixtures" / "authors_sampling.safetensors"


def test_tokens_and_latents_of_every_step_are_the_authors():
    with safe_open(FIXTURE, "pt") as file:
        config = RosettaConfig(**{**TINY, **json.loads(file.metadata()["config"])})
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    model = RosettaForCausalLMAndImageGeneration(config).eval()
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all(key == "lm_head.weight" or ".visual." in key for key in missing.missing_keys)  # not used in drawing

    processor = tiny_processor()
    assert torch.equal(processor.draw_prompt("a red stone", 48, 80)["input_ids"], tensors["input_ids"])

    steps = []
    pipe = RosettaPipeline(model, None, FlowMatchEulerDiscreteScheduler(), processor)
    pipe.set_progress_bar_config(disable=True)
    pipe(
        "a red stone",
        height=48,
        width=80,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors["latents"]) or {},
    )
    torch.testing.assert_close(torch.cat(steps), tensors["latents"], rtol=0, atol=2e-5)
