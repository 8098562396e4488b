"""The images that others are drawn from: what a call of the pipeline may give, and what becomes of them."""

import reprlib
from numbers import Real

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .buckets_rosetta import nearest_bucket
from .images_rosetta import read_image
from .latent_codec_rosetta import encode_images


class SourceImages:
    """
    Args:
        pipe ([`RosettaPipeline`])
        image: one image, as [`~images_rosetta.read_image`] takes it, for all prompts; a list of them for one prompt;
            or a list with one or a list of them for each prompt; `None` for none.
        prompt (`str` or `list[str]`, *optional*)
        strength (`float`, *optional*): the time at which the drawing starts from them.
        image_guidance_scale (`float`, *optional*)
        prompt_embeds (`torch.Tensor`, *optional*)

    Attributes:
        read (`list[list[PIL.Image.Image]]`, *optional*): the images that stand before each prompt.
        guide (`bool`): whether they guide.

    Raises:
        ValueError: that names the argument: if there are not as many as prompts, one cannot be read, or arguments do
            not fit together.
    """

    def __init__(self, pipe, image, prompt, strength, image_guidance_scale, prompt_embeds):
        self.pipe, self.strength, self.images = pipe, strength, None
        for name, value in (("strength", strength), ("image_guidance_scale", image_guidance_scale)):
            if value is None:
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
            if image is None:
                raise ValueError(f"`{name}` needs `image`, which is missing.")
        if image is not None:
            self._check(prompt_embeds, image_guidance_scale)
            self.images = _images_of_prompts(image, prompt)
        if strength is not None and (many := [len(own) for own in self.images if len(own) > 1]):
            raise ValueError(
                f"`image` must be one for each prompt with `strength`, which starts from it, got {many[0]}."
            )
        self.read = self.images if strength is None else None
        self.guide = image_guidance_scale is not None

    def _check(self, prompt_embeds, image_guidance_scale):
        if prompt_embeds is not None:
            raise ValueError(
                "`image` and `prompt_embeds` cannot be given together: an image is read before the prompt."
            )
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"`strength` must be above 0 and at most 1, got {self.strength!r}.")
        if self.strength is not None and image_guidance_scale is not None:
            raise ValueError(
                "`image_guidance_scale` and `strength` cannot be given together: it is started from, not read."
            )
        sources, types = self.pipe.processor.image_embeds_from, self.pipe.processor.embeds_from
        if self.strength is None and (missing := [source for source in sources if source not in types]):
            raise ValueError(f"`image`: no token type of this model embeds from {missing[0]!r}, only from {types}.")
        if self.pipe.vae is None and (self.strength is not None or "noisy_latents" in sources):
            raise ValueError("`image` becomes latents, for which `vae` must be part of the pipeline, it is None.")

    def size(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        """
        (Height, width) in pixels to draw at: by default of the last image of each prompt the nearest size that is
        trained on.

        Raises:
            ValueError: if these differ: images that are drawn together have one size.
        """
        if self.images is None or height is not None or width is not None:
            return height, width
        processor = self.pipe.processor
        buckets = processor.inference_buckets if processor.latent_prefix else processor.training_buckets
        sizes = {buckets[nearest_bucket(own[-1].height, own[-1].width, buckets)] for own in self.images}
        if len(sizes) > 1:
            raise ValueError(
                f"`height` and `width` must be given for images of several shapes, which are {sorted(sizes)}."
            )
        return sizes.pop()

    def first_step(self, scheduler) -> int:
        """The first of a scheduler's steps, whose times are set, that is at `strength` or below; at least the last."""
        if self.strength is None:
            return 0
        sigmas, order = scheduler.sigmas[: len(scheduler.timesteps)], getattr(scheduler, "order", 1)
        step = int((sigmas > self.strength + 1e-6).sum())
        step = min(-(-step // order) * order, len(sigmas) - 1)
        scheduler.set_begin_index(step)
        return step

    def started(self, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Noise `(N, C, h, w)`, with `strength` mixed with the image of each prompt, as far as `sigma` says."""
        if self.strength is None:
            return noise
        height, width = (side * self.pipe.processor.latent_patch_size for side in noise.shape[2:])
        resized = [own[0].resize((width, height), Image.Resampling.LANCZOS) for own in self.images]
        pixels = torch.from_numpy(np.stack([np.array(image) for image in resized])).permute(0, 3, 1, 2)
        clean = encode_images(self.pipe.vae, pixels.to(noise.device).float() / 255 * 2 - 1).to(noise)
        clean = clean.repeat_interleave(len(noise) // len(clean), dim=0)
        return (1 - sigma) * clean + sigma * noise


def noise_of(pipe, num_images: int, grid_hw: list[int], generator, latents: torch.Tensor | None) -> torch.Tensor:
    """The given noise, or new noise, `(N, C, h, w)` in fp32."""
    shape, device = (num_images, pipe.transformer.config.latent_channels, *grid_hw), pipe._execution_device
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if tuple(latents.shape) != shape:
        raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
    return latents.to(device=device, dtype=torch.float32)


def _images_of_prompts(image, prompt) -> list[list[Image.Image]]:
    """Those of each prompt, in RGB."""
    num_prompts = len(prompt) if isinstance(prompt, list | tuple) else 1
    if not isinstance(image, list | tuple):
        given = [[image]] * num_prompts
    elif isinstance(prompt, str):
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


__all__ = ["SourceImages", "noise_of"]
