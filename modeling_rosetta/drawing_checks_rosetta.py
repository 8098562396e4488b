"""What a call of the pipeline must be given."""

from numbers import Integral, Real

import numpy as np
import torch

from .flow_scheduler_rosetta import check_scheduler


def check_inputs(
    pipe,
    prompt,
    num_inference_steps,
    sigmas,
    guidance_scale,
    num_images_per_prompt,
    generator,
    latents,
    output_type,
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
    if not isinstance(prompt, (str, list, tuple)) or len(prompt) == 0 and not isinstance(prompt, str):
        raise ValueError(f"`prompt` must be a string or a list of strings that is not empty, got {prompt!r}.")
    counts = {"num_inference_steps": num_inference_steps, "num_images_per_prompt": num_images_per_prompt}
    for name, value in {**counts, "max_sequence_length": max_sequence_length}.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    if sigmas is not None:
        try:
            steps = np.asarray([*map(float, sigmas), 0.0])
        except (TypeError, ValueError):
            raise ValueError(f"`sigmas` must be a list of numbers, got {sigmas!r}.") from None
        if len(steps) == 1 or steps[0] > 1 or not (np.diff(steps) < 0).all():
            raise ValueError(f"`sigmas` must fall from at most 1 and stay above 0, got {sigmas}.")
    if not isinstance(guidance_scale, Real) or not np.isfinite(guidance_scale):
        raise ValueError(f"`guidance_scale` must be a finite number, got {guidance_scale!r}.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
    if output_type != "latent" and pipe.vae is None:
        raise ValueError(f"`output_type` must be 'latent' without a `vae`, got {output_type!r}.")
    if callback_on_step_end is not None and not callable(callback_on_step_end):
        raise ValueError(f"`callback_on_step_end` must be callable, got {callback_on_step_end!r}.")
    unknown = set(callback_on_step_end_tensor_inputs) - set(pipe._callback_tensor_inputs)
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be among {pipe._callback_tensor_inputs}, got "
            f"{sorted(unknown)}. The guidance scale is changed by `pipe._guidance_scale`."
        )
    num_images = num_images_per_prompt * (1 if isinstance(prompt, str) else len(prompt))
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


__all__ = ["check_inputs"]
