import pytest
import torch

from examples.miniature.vae import train_vae
from modeling_rosetta.latent_codec_rosetta import decode_latents, encode_images


@pytest.fixture(scope="module")
def pixels(digits):
    return digits[0].pixels()[:200]


@pytest.fixture(scope="module")
def vae(pixels):
    return train_vae(pixels, num_steps=80)


def test_latents_of_the_training_images_are_normalised(vae, pixels):
    latents = encode_images(vae, pixels)
    assert latents.shape == (200, 4, 4, 4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_reconstructions_resemble_the_held_out_images(vae, digits):
    held_out = digits[1].pixels()
    reconstructions = decode_latents(vae, encode_images(vae, held_out))
    assert reconstructions.shape == held_out.shape
    mean_image = digits[0].pixels().mean(0)
    assert (reconstructions - held_out).square().mean() < 0.5 * (mean_image - held_out).square().mean()


def test_it_is_frozen(vae, pixels):
    statistics = vae.bn.running_mean.clone()
    encode_images(vae, pixels[:5])
    assert torch.equal(vae.bn.running_mean, statistics)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())
