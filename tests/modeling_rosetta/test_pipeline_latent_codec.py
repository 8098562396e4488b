"""Images to latents and back."""

import torch
from diffusers import Flux2KleinPipeline

from modeling_rosetta.latent_codec_rosetta import decode_latents, encode_images
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_vae


def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_latents_are_the_patches_of_diffusers_normalised_by_the_batch_norm():
    vae = tiny_vae()
    patches = Flux2KleinPipeline._patchify_latents(vae.encode(images()).latent_dist.mean)
    torch.testing.assert_close(encode_images(vae, images()), vae.bn(patches))


@torch.no_grad()
def test_decoding_undoes_patches_and_statistics():
    vae = tiny_vae()
    vae.decode = lambda latents, return_dict: (latents,)
    mean = vae.encode(images()).latent_dist.mean
    torch.testing.assert_close(decode_latents(vae, encode_images(vae, images())), mean, rtol=0, atol=1e-5)


def test_statistics_do_not_move_in_training_mode():
    vae = tiny_vae().train()
    before = vae.bn.running_mean.clone()
    decode_latents(vae, encode_images(vae, images()))
    assert torch.equal(vae.bn.running_mean, before) and int(vae.bn.num_batches_tracked) == 0


def test_a_half_precision_vae_is_used_as_it_is():
    vae = tiny_vae().to(torch.bfloat16)
    assert encode_images(vae, images()).dtype == torch.float32
    assert decode_latents(vae, noise()).dtype == torch.bfloat16
