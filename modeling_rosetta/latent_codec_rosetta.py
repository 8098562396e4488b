"""Images to the latents that Rosetta draws, and back: the FLUX.2 VAE, its 2 x 2 patches and its statistics."""

from contextlib import contextmanager

import torch
from torch.nn import functional as F


@torch.no_grad()
def encode_images(vae, images: torch.Tensor) -> torch.Tensor:
    """
    The clean latents of images: the mean of the VAE's posterior, patchified and normalised.

    Args:
        vae (`AutoencoderKLFlux2`): on the device of `images`, or offloaded.
        images (`torch.Tensor` of shape `(N, 3, H, W)`): in [-1, 1].

    Returns:
        `torch.FloatTensor` of shape `(N, C, h, w)`; their tokens in row-major order are the rows that the model reads.
    """
    latents = vae.encode(images.to(vae.dtype)).latent_dist.mode().float()
    mean, std = _statistics(vae, latents.device)
    return (F.pixel_unshuffle(latents, vae.config.patch_size[0]) - mean) / std


@torch.no_grad()
def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """
    The inverse of [`encode_images`], up to what the VAE loses.

    Args:
        vae (`AutoencoderKLFlux2`): on the device of `latents`, or offloaded.
        latents (`torch.Tensor` of shape `(N, C, h, w)`)

    Returns:
        `torch.Tensor` of shape `(N, 3, H, W)` in the VAE's dtype, about [-1, 1].
    """
    mean, std = _statistics(vae, latents.device)
    latents = F.pixel_shuffle(latents.float() * std + mean, vae.config.patch_size[0])
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0]


def _statistics(vae, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Read off the batch norm, which would update them if it were called in training mode.
    with _values_brought(vae.bn):
        mean, variance = (
            statistic.to(device, torch.float32)[:, None, None]
            for statistic in (vae.bn.running_mean, vae.bn.running_var)
        )
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


@contextmanager
def _values_brought(module: torch.nn.Module):
    """Does what the hooks of offloading would do around a call of `module`, which beside them may hold no values."""
    hook = getattr(module, "_hf_hook", None)  # accelerate's
    registry = getattr(module, "_diffusers_hook", None)
    group_hook = registry and registry.get_hook("group_offloading")
    if hook is not None:
        hook.pre_forward(module)
    if group_hook:
        group_hook.pre_forward(module)
    yield
    if group_hook:
        group_hook.post_forward(module, None)
    if hook is not None:
        hook.post_forward(module, None)


__all__ = ["decode_latents", "encode_images"]
