"""The images that others are drawn from: what a call of the pipeline may give, and what becomes of them."""

import reprlib
from numbers import Real

import numpy as np
import torch
from PIL import Image

from .buckets_rosetta import nearest_bucket
from .images_rosetta import read_image
from .latent_codec_rosetta import encode_images


def read_images(image, num_prompts: int, is_list: bool) -> list[list[Image.Image]] | None:
    """
    Args:
        image: one image, as [`~images_rosetta.read_image`] takes it, for all prompts; a list of them for one prompt;
            or a list with one or a list of them for each prompt.
        num_prompts (`int`)
        is_list (`bool`): whether the prompts are a list.

    Returns:
        `list[list[PIL.Image.Image]]`: those of each prompt, in RGB; `None` if none was given.

    Raises:
        ValueError: if there are not as many as prompts, or one cannot be read.
    """
    if image is None:
        return None
    if not isinstance(image, list | tuple):
        given = [[image]] * num_prompts
    elif not is_list:
        given = [list(image)]
    else:
        given = [list(own) if isinstance(own, list | tuple) else [own] for own in image]
    if len(given) != num_prompts:
        raise ValueError(
            f"`image` must be one or one list for each of the {num_prompts} prompts, got {reprlib.repr(image)}."
        )
    if empty := [i for i, own in enumerate(given) if not own]:
        raise ValueError(f"`image` has none for prompt {empty[0]}.")
    return [[read_image(one, f"`image` of prompt {i}") for one in own] for i, own in enumerate(given)]


def check_source_images(pipe, images: list[list] | None, strength, image_guidance_scale, latents, encoded):
    """Raises a `ValueError` that names the argument."""
    for name, value in (("strength", strength), ("image_guidance_scale", image_guidance_scale)):
        if value is None:
            continue
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
        if images is None:
            raise ValueError(f"`{name}` needs `image`, which is missing.")
    if images is None:
        return
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"`strength` must be above 0 and at most 1, got {strength!r}.")
    if strength is not None and (many := [len(own) for own in images if len(own) > 1]):
        raise ValueError(f"`image` must be one for each prompt with `strength`, which starts from it, got {many[0]}.")
    if strength is not None and image_guidance_scale is not None:
        raise ValueError(
            "`image_guidance_scale` and `strength` cannot be given together: it is started from, not read."
        )
    if any(given is not None for given, _ in encoded):
        raise ValueError("`image` and `prompt_embeds` cannot be given together: an image is read before the prompt.")
    sources, types = pipe.processor.image_embeds_from, pipe.processor.embeds_from
    if strength is None and (missing := [source for source in sources if source not in types]):
        raise ValueError(f"`image`: no token type of this model embeds from {missing[0]!r}, only from {types}.")
    if pipe.vae is None and (strength is not None or "noisy_latents" in sources):
        raise ValueError("`image` becomes latents, for which `vae` must be part of the pipeline, it is None.")


def size_of(images: list[list[Image.Image]], processor) -> tuple[int, int]:
    """
    (Height, width) in pixels to draw at: of the last image of each prompt the nearest size that is trained on.

    Raises:
        ValueError: if they differ: images that are drawn together have one size.
    """
    buckets = processor.inference_buckets if processor.latent_prefix else processor.training_buckets
    sizes = {buckets[nearest_bucket(own[-1].height, own[-1].width, buckets)] for own in images}
    if len(sizes) > 1:
        raise ValueError(
            f"`height` and `width` must be given for images of several shapes, which are {sorted(sizes)}."
        )
    return sizes.pop()


def first_step(scheduler, strength: float) -> int:
    """The first of a scheduler's steps, whose times are set, that is at `strength` or below; the last one at least."""
    sigmas, order = scheduler.sigmas[: len(scheduler.timesteps)], getattr(scheduler, "order", 1)
    step = int((sigmas > strength + 1e-6).sum())
    step = min(-(-step // order) * order, len(sigmas) - 1)
    scheduler.set_begin_index(step)
    return step


def started_latents(vae, images: list[list[Image.Image]], noise: torch.Tensor, sigma: float, patch: int):
    """Noise `(N, C, h, w)` mixed with the image of each prompt, as far as `sigma` says; a token has `patch` pixels."""
    width, height = noise.shape[3] * patch, noise.shape[2] * patch
    pixels = np.stack([np.array(own[0].resize((width, height), Image.Resampling.LANCZOS)) for own in images])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(noise.device).float() / 255 * 2 - 1
    clean = encode_images(vae, pixels).to(noise).repeat_interleave(len(noise) // len(images), dim=0)
    return (1 - sigma) * clean + sigma * noise


__all__ = ["check_source_images", "first_step", "read_images", "size_of", "started_latents"]
