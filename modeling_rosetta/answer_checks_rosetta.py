"""What an answer of text and images must be given."""

from numbers import Integral

from .flow_scheduler_rosetta import check_scheduler


def grid_of(processor, height, width) -> list[int]:
    """(Height, width) in tokens of the images to draw, from pixels."""
    sides = [processor.base_size if side is None else side for side in (height, width)]
    for name, side in zip(("height", "width"), sides, strict=True):
        if not isinstance(side, Integral) or side < 1 or side % processor.latent_patch_size:
            raise ValueError(
                f"`{name}` must be a positive multiple of {processor.latent_patch_size} pixels, got {side!r}."
            )
    return [side // processor.latent_patch_size for side in sides]


def check_answer(
    pipe, max_new_tokens, max_images, min_images, num_inference_steps, generator, num_conversations: int, sees_drawings
):
    """Raises a `ValueError` that names the argument."""
    for name in ("transformer", "processor", "scheduler", "vae"):
        if getattr(pipe, name) is None:
            raise ValueError(f"`{name}` must be part of the pipeline to answer, it is None.")
    if pipe.transformer.config.token_type_index("noisy_latents") is None:
        raise ValueError("`transformer` must have a token type that is drawn (`noisy_latents`).")
    if pipe.transformer.training:
        raise ValueError("`transformer` is in training mode: call `pipe.transformer.eval()`.")
    check_scheduler(pipe.scheduler)
    numbers = {"max_new_tokens": max_new_tokens, "num_inference_steps": num_inference_steps}
    for name, value in {**numbers, "max_images": max_images, "min_images": min_images}.items():
        least = 1 if name in numbers else 0
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
    if min_images > max_images:
        raise ValueError(f"`min_images` must be at most `max_images` = {max_images}, got {min_images}.")
    if sees_drawings and "pixel_values" not in pipe.processor.image_embeds_from:
        raise ValueError("`sees_drawings` needs 'pixel_values' in the processor's `image_embeds_from`.")
    if isinstance(generator, list | tuple) and len(generator) != num_conversations:
        raise ValueError(
            f"`generator` must be one or one for each of {num_conversations} conversations, got {len(generator)}."
        )


__all__ = ["check_answer", "grid_of"]
