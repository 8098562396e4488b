"""Drawing while accelerate or diffusers hold the weights elsewhere."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook

from modeling_rosetta.latent_codec_rosetta import decode_latents, encode_images
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline, tiny_vae


CPU = torch.device("cpu")
IMAGES = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)


def test_the_codec_runs_where_the_hook_of_the_vae_brings_it():
    """The meta device stands for an accelerator."""
    for run in (
        lambda vae: decode_latents(vae, noise().to("meta")),
        lambda vae: encode_images(vae, IMAGES.to("meta")),
    ):
        vae = tiny_vae()
        cpu_offload_with_hook(vae, execution_device="meta")
        assert vae.bn.running_mean.device == CPU
        assert run(vae).device.type == "meta"


@pytest.mark.parametrize("offload_buffers", [True, False])
def test_the_codec_of_a_vae_that_is_offloaded_module_by_module(offload_buffers):
    plain, vae = tiny_vae(), tiny_vae()
    cpu_offload(vae, CPU, offload_buffers=offload_buffers)
    assert vae.encoder.conv_in.weight.is_meta and vae.bn.running_mean.is_meta == offload_buffers
    assert torch.equal(encode_images(vae, IMAGES), encode_images(plain, IMAGES))
    assert torch.equal(decode_latents(vae, noise()), decode_latents(plain, noise()))
    assert vae.bn.running_mean.is_meta == offload_buffers  # it was given back


def sequential_offload(pipe, path):
    for name in ("transformer", "vae"):
        cpu_offload(getattr(pipe, name), CPU, offload_buffers=True)
    assert all(weight.is_meta for weight in pipe.transformer.parameters())


def model_offload(pipe, path):
    pipe._all_hooks = []
    for name in pipe.model_cpu_offload_seq.split("->"):
        pipe._all_hooks.append(cpu_offload_with_hook(getattr(pipe, name), CPU)[1])


def group_offload(kind: str):
    def offload(pipe, path):
        pipe.enable_group_offload(CPU, CPU, offload_type=kind, num_blocks_per_group=1)

    return offload


def disk_offload(pipe, path):
    pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level", offload_to_disk_path=str(path))


@pytest.mark.parametrize(
    "offload",
    [sequential_offload, model_offload, group_offload("leaf_level"), group_offload("block_level"), disk_offload],
)
@pytest.mark.parametrize("architecture", ["rosetta", "mot"])
def test_an_offloaded_pipeline_draws_the_same(offload, architecture, tmp_path):
    pipe = tiny_pipeline(architecture)
    asked = {"prompt": "a red stone", "latents": noise(), "num_inference_steps": 2, "output_type": "pt"}
    expected = pipe(**asked).images
    offload(pipe, tmp_path)
    for _ in range(2):
        assert torch.equal(pipe(**asked).images, expected)
