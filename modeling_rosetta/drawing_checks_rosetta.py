"""What a call of the pipeline must be given."""

import reprlib
from numbers import Integral, Real

import numpy as np
import torch

from .flow_scheduler_rosetta import check_scheduler
from .guidance_rosetta import check_guidance
from .prompts_rosetta import NO_OTHERS, encoded_size


def check_parts(transformer, vae, processor):
    """Raises a `ValueError` if the parts of a pipeline do not fit together; one that is `None` fits all."""
    sources = None if transformer is None else [t["embeds_from"] for t in transformer.config.token_types]
    if None not in (transformer, processor) and processor.embeds_from != sources:
        raise ValueError(
            f"`processor.embeds_from` must be {sources}, as the token types of `transformer`, got "
            f"{processor.embeds_from}: see `processor.set_token_types`."
        )
    if None not in (vae, processor):
        pixels = 2 ** (len(vae.config.block_out_channels) - 1) * vae.config.patch_size[0]
        if processor.latent_patch_size != pixels:
            raise ValueError(
                f"`processor.latent_patch_size` must be {pixels}, the pixels of a token of this `vae`, got "
                f"{processor.latent_patch_size}."
            )
    if None not in (vae, transformer) and transformer.config.latent_channels != vae.bn.num_features:
        raise ValueError(
            f"`transformer.config.latent_channels` must be {vae.bn.num_features}, the channels of a token of "
            f"this `vae`, got {transformer.config.latent_channels}."
        )


def check_inputs(
    pipe,
    prompt,
    negative_prompt,
    encoded,
    height,
    width,
    num_inference_steps,
    sigmas,
    timesteps,
    guidance,
    step_cache_threshold,
    num_images_per_prompt,
    generator,
    latents,
    system_prompt,
    output_type,
    attention_kwargs,
    callback_on_step_end,
    callback_on_step_end_tensor_inputs,
    max_sequence_length,
):
    """Raises a `ValueError` that names the argument; prompts and sizes are the processor's to check."""
    for name in ("transformer", "processor", "scheduler"):
        if getattr(pipe, name) is None:
            raise ValueError(f"`{name}` must be part of the pipeline to draw, it is None.")
    if pipe.transformer.config.token_type_index("noisy_latents") is None:
        names = [token_type["name"] for token_type in pipe.transformer.config.token_types]
        raise ValueError(f"`transformer` must have a token type that is drawn (`noisy_latents`), got {names}.")
    check_scheduler(pipe.scheduler)
    num_prompts = _check_prompts(pipe, prompt, negative_prompt, encoded, guidance[0])
    if system_prompt is not None and not isinstance(system_prompt, str):
        raise ValueError(f"`system_prompt` must be a string, got {system_prompt!r}.")
    counts = {"num_inference_steps": num_inference_steps, "num_images_per_prompt": num_images_per_prompt}
    for name, value in {**counts, "max_sequence_length": max_sequence_length}.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    for name, value in {"height": height, "width": width}.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
            raise ValueError(f"`{name}` must be a number of pixels, got {reprlib.repr(value)}.")
    if sigmas is not None and timesteps is not None:
        raise ValueError("Only one of `sigmas` and `timesteps` can be given.")
    for name, times, first in (
        ("sigmas", sigmas, 1),
        ("timesteps", timesteps, pipe.scheduler.config.get("num_train_timesteps")),
    ):
        if times is None:
            continue
        if not isinstance(times, list | tuple | np.ndarray | torch.Tensor):
            raise ValueError(f"`{name}` must be a list of numbers, got {reprlib.repr(times)}.")
        try:
            steps = np.asarray([*map(float, times), 0.0])
        except (TypeError, ValueError):
            raise ValueError(f"`{name}` must be a list of numbers, got {reprlib.repr(times)}.") from None
        if len(steps) == 1 or steps[0] > first or not (np.diff(steps) < 0).all():
            raise ValueError(f"`{name}` must fall from at most {first} and stay above 0, got {reprlib.repr(times)}.")
    check_guidance(*guidance)
    is_number = isinstance(step_cache_threshold, Real) and not isinstance(step_cache_threshold, bool)
    if not is_number or not 0 <= step_cache_threshold < np.inf:
        raise ValueError(f"`step_cache_threshold` must be a number of at least 0, got {step_cache_threshold!r}.")
    scale = (attention_kwargs or {}).get("scale", 1.0) if isinstance(attention_kwargs, dict | None) else None
    if not isinstance(scale, Real) or set(attention_kwargs or ()) - {"scale"}:
        raise ValueError(f"`attention_kwargs` may hold a number, 'scale', of LoRA adapters, got {attention_kwargs!r}.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
    if output_type != "latent" and pipe.vae is None:
        raise ValueError(f"`output_type` must be 'latent' without a `vae`, got {output_type!r}.")
    if callback_on_step_end is not None and not callable(callback_on_step_end):
        raise ValueError(f"`callback_on_step_end` must be callable, got {callback_on_step_end!r}.")
    named = callback_on_step_end_tensor_inputs
    is_list = isinstance(named, list | tuple)
    unknown = [name for name in named if name not in pipe._callback_tensor_inputs] if is_list else named
    if unknown or not is_list:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be among {pipe._callback_tensor_inputs}, got "
            f"{reprlib.repr(unknown)}. The guidance scale is changed by `pipe._guidance_scale`."
        )
    num_images = num_images_per_prompt * num_prompts
    generators = generator if isinstance(generator, list | tuple) else [generator] * (generator is not None)
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}.")
    if isinstance(generator, list | tuple) and len(generator) != num_images:
        raise ValueError(
            f"`generator` must be one generator or one for each of the {num_images} images, got {len(generator)}."
        )
    if latents is not None and not isinstance(latents, torch.Tensor):
        raise ValueError(f"`latents` must be a tensor, got {type(latents).__name__}.")
    if pipe.transformer.training:
        raise ValueError("`transformer` is in training mode: call `pipe.transformer.eval()`.")


def _check_prompts(pipe, prompt, negative_prompt, encoded, guidance_scale) -> int:
    """How many prompts there are, in words or encoded."""
    (embeds, _), (negative_embeds, _) = encoded
    if (prompt is None) == (embeds is None):
        raise ValueError("Exactly one of `prompt` and `prompt_embeds` must be given.")
    if negative_prompt is not None and negative_embeds is not None:
        raise ValueError("Only one of `negative_prompt` and `negative_prompt_embeds` can be given.")
    if prompt is not None and (not isinstance(prompt, str | list | tuple) or prompt in ([], ())):
        raise ValueError(f"`prompt` must be a string or a list of strings that is not empty, got {prompt!r}.")
    size = encoded_size(pipe.transformer.config)
    for name, (given, mask) in zip(("prompt_embeds", "negative_prompt_embeds"), encoded, strict=True):
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        if given is not None and (len(shape) != 3 or shape[-1] != size or 0 in shape):
            raise ValueError(f"`{name}` must be a tensor (N, P, {size}) from `encode_prompt`, got {shape}.")
        if (given is None) != (mask is None):
            raise ValueError(f"`{name}` and `{name}_mask` go together, as `encode_prompt` returns them.")
        if given is not None and (not isinstance(mask, torch.Tensor) or mask.shape != given.shape[:2]):
            raise ValueError(f"`{name}_mask` must be a tensor of shape {shape[:2]}, got {reprlib.repr(mask)}.")
    num_prompts = 1 if isinstance(prompt, str) else len(prompt if embeds is None else embeds)
    if negative_embeds is not None and len(negative_embeds) != num_prompts:
        raise ValueError(
            f"`negative_prompt_embeds` must have one entry for each of the {num_prompts} prompts, got "
            f"{len(negative_embeds)}."
        )
    is_guided = isinstance(guidance_scale, Real) and float(guidance_scale) > 1
    if embeds is not None and is_guided and negative_embeds is None and negative_prompt is None:
        raise ValueError(NO_OTHERS)
    return num_prompts


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


__all__ = ["check_answer", "check_inputs", "check_parts", "grid_of"]
