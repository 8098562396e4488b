"""Samples of images to draw, whose latents are there already or are made in training."""

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError

from modeling_rosetta.latent_codec_rosetta import encode_pixels, with_latents


def drawing_sample(
    processor,
    caption: str,
    image: Image.Image | None = None,
    latents: torch.Tensor | None = None,
    sources: list[Image.Image] = (),
    source_latents: list[torch.Tensor] = (),
) -> dict[str, torch.Tensor]:
    """
    Args:
        processor (`RosettaProcessor`)
        caption (`str`): the prompt.
        image (`PIL.Image.Image`, *optional*): to draw; it is resized to its bucket.
        latents (`torch.Tensor` of shape `(C, h, w)`, *optional*): of the image, in its place.
        sources (`list[PIL.Image.Image]`): images before the caption, that it is drawn from.
        source_latents (`list[torch.Tensor]`): theirs, beside `latents`, where the processor gives images as latents.

    Returns:
        `dict[str, torch.Tensor]`: as from `RosettaProcessor.training_sample`, but for an image with `latent_pixels`
        `(P, 3)`, all its pixels as `uint8`, in place of `latents`. [`with_latents`] makes latents of them.
    """
    slot = {"image": image} if latents is None else {"latents": latents}
    shown = [{"type": "image", "image": source} for source in sources]
    shown = [{**item, "latents": own} for item, own in zip(shown, source_latents or [None] * len(shown), strict=True)]
    return processor.training_sample(
        [
            {"role": "user", "content": [*shown, {"type": "text", "text": caption}]},
            {"role": "assistant", "content": [{"type": "latents", **slot}]},
        ]
    )


def cached_latents(record: dict, name: str = "latents") -> torch.Tensor:
    """
    The latents `(C, h, w)` of a record that [`~trainer.data.latent_cache.write_latent_cache`] wrote.

    Args:
        record (`dict`)
        name (`str`): `"latents"` of the image to draw, `"source_0"` and so on of those it is drawn from.

    Raises:
        ValueError: if they are damaged, misshapen or not finite.
    """
    try:
        latents = safetensors.torch.load(record["latents"])[name]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"`latents` cannot be read, {error}") from error
    if latents.ndim != 3 or 0 in latents.shape:
        raise ValueError(f"`latents` must have shape (C, h, w), got {tuple(latents.shape)}")
    if not latents.isfinite().all():
        raise ValueError("`latents` are not finite")
    return latents.float()


__all__ = ["cached_latents", "drawing_sample", "encode_pixels", "with_latents"]
