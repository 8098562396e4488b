"""What engines call that run diffusers' pipelines: SGLang's diffusers backend, vllm-omni's diffusers load format."""

import inspect
import json

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


# The arguments that they give if the call has them, which it must.
ARGUMENTS = (
    *("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "height", "width", "generator", "image"),
    *("num_images_per_prompt", "output_type"),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    tiny_pipeline(latent_prefix=False).save_pretrained(folder)
    return folder


def drawn(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red stone", latents=noise(), num_inference_steps=2, output_type="pt").images


def test_sglang_loads_and_calls_it(repository):
    pipe = DiffusionPipeline.from_pretrained(
        repository, torch_dtype=torch.float32, trust_remote_code=True, revision=None
    )
    assert set(ARGUMENTS) <= set(inspect.signature(pipe.__call__).parameters)
    device = next(pipe.transformer.parameters()).device
    images = pipe(
        prompt="a red stone",
        negative_prompt="blue",
        num_inference_steps=2,
        guidance_scale=2.0,
        height=64,
        width=32,
        generator=torch.Generator(device=device).manual_seed(0),
        num_images_per_prompt=2,
        output_type="pt",
    ).images
    assert images.shape == (2, 3, 64, 32) and 0 <= images.min() and images.max() <= 1
    for backend in ("native", "_native_math"):
        pipe.transformer.set_attention_backend(backend)


def test_vllm_omni_loads_it_where_the_class_has_one_name(repository):
    """It looks the name up in diffusers, which fails on the pair that diffusers itself needs; with the class's name
    alone it loads what `custom_pipeline` says."""
    expected = drawn(DiffusionPipeline.from_pretrained(repository, trust_remote_code=True))
    index = json.loads((repository / "model_index.json").read_text())
    pair = index["_class_name"]
    (repository / "model_index.json").write_text(json.dumps({**index, "_class_name": pair[1]}))
    pipe = DiffusionPipeline.from_pretrained(
        repository, torch_dtype=torch.float32, trust_remote_code=True, custom_pipeline=pair[0]
    )
    pipe.transformer.set_attention_backend("native")
    assert torch.equal(drawn(pipe), expected)
    assert isinstance(pipe("x", num_inference_steps=1).images[0], Image.Image)
