"""Images to the latents that Rosetta draws, and back: the FLUX.2 VAE, its 2 x 2 patches and its statistics."""

import math
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from .latent_roles_rosetta import has_latents


# What a batch of the processor holds of images, besides the grids and roles of those among the latents.
MEDIA_KEYS = ("pixel_values", "image_grid_thw", "image_is_causal", "latents", "latent_pixels")


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


def encode_pixels(vae, pixels: torch.Tensor, latent_grid_hw: torch.Tensor) -> torch.Tensor:
    """
    Encodes the images of a batch, those of one size together.

    Args:
        vae (`AutoencoderKLFlux2`): on the device of `pixels`.
        pixels (`torch.Tensor` of shape `(P, 3)`): all pixels of all images, `uint8`.
        latent_grid_hw (`torch.LongTensor` of shape `(I, 2)`): height and width of each image in tokens.

    Returns:
        `torch.FloatTensor` of shape `(L, C)`: the latents of all images, row-major, in order.
    """
    grids = [tuple(grid) for grid in latent_grid_hw.tolist()]
    side = math.isqrt(len(pixels) // sum(height * width for height, width in grids))  # of a token, in pixels
    parts = pixels.split([height * width * side**2 for height, width in grids])
    latents: list[torch.Tensor | None] = [None] * len(grids)
    for grid in dict.fromkeys(grids):
        members = [i for i, other in enumerate(grids) if other == grid]
        images = torch.stack([parts[i].T.unflatten(1, (grid[0] * side, grid[1] * side)) for i in members])
        for i, encoded in zip(members, encode_images(vae, images.float() / 255 * 2 - 1), strict=True):
            latents[i] = encoded.flatten(1).T
    return torch.cat(latents)


def with_latents(inputs: dict, vae) -> dict:
    """
    A batch with latents in place of pixels, if it has any.

    Raises:
        ValueError: if there are pixels, but no VAE.
    """
    if inputs.get("latent_pixels") is None:
        return inputs
    if vae is None:
        raise ValueError("`vae` must be given: there are images to draw as pixels, and not as latents.")
    inputs = dict(inputs)
    grids, roles = inputs["latent_grid_hw"], inputs.get("latent_roles")
    grids = grids if roles is None else grids[has_latents(roles)]
    inputs["latents"] = encode_pixels(vae, inputs.pop("latent_pixels"), grids)
    return inputs


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


__all__ = ["decode_latents", "encode_images", "encode_pixels", "with_latents"]
