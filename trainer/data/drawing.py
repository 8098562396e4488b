"""Samples of images to draw, whose latents are there already or are made in training."""

import math

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError

from modeling_rosetta import encode_images


def drawing_sample(
    processor, caption: str, image: Image.Image | None = None, latents: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """
    Args:
        processor (`RosettaProcessor`)
        caption (`str`): the prompt.
        image (`PIL.Image.Image`, *optional*): to draw; it is resized to its bucket.
        latents (`torch.Tensor` of shape `(C, h, w)`, *optional*): of the image, in its place.

    Returns:
        `dict[str, torch.Tensor]`: as from `RosettaProcessor.training_sample`, but for an image with `latent_pixels`
        `(P, 3)`, all its pixels as `uint8`, in place of `latents`. [`encode_pixels`] makes latents of them.
    """
    if latents is not None:
        slot = {"latents": latents}
    else:
        pixels = processor.preprocess_vae_image(image)
        slot = {"height": pixels.shape[1], "width": pixels.shape[2]}
    sample = processor.training_sample(
        [
            {"role": "user", "content": caption},
            {"role": "assistant", "content": [{"type": "latents", **slot}]},
        ]
    )
    if latents is None:
        sample["latent_pixels"] = ((pixels + 1) * 127.5).round().to(torch.uint8).flatten(1).T
    return sample


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
    inputs["latents"] = encode_pixels(vae, inputs.pop("latent_pixels"), inputs["latent_grid_hw"])
    return inputs


def cached_latents(record: dict) -> torch.Tensor:
    """
    The latents `(C, h, w)` of a record that [`~trainer.data.latent_cache.write_latent_cache`] wrote.

    Raises:
        ValueError: if they are damaged, misshapen or not finite.
    """
    try:
        latents = safetensors.torch.load(record["latents"])["latents"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"`latents` cannot be read, {error}") from error
    if latents.ndim != 3 or 0 in latents.shape:
        raise ValueError(f"`latents` must have shape (C, h, w), got {tuple(latents.shape)}")
    if not latents.isfinite().all():
        raise ValueError("`latents` are not finite")
    return latents.float()


__all__ = ["cached_latents", "drawing_sample", "encode_pixels", "with_latents"]
