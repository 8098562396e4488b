"""A scheduler of diffusers, for flow matching: which ones, and their times."""

from inspect import signature

import numpy as np
import torch
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, retrieve_timesteps


def check_scheduler(scheduler):
    """Raises a `ValueError` for a scheduler that is none for flow matching, from noise to data."""
    config = scheduler.config
    if (
        config.get("prediction_type", "flow_prediction") != "flow_prediction"
        or not config.get("use_flow_sigmas", True)
        or config.get("invert_sigmas", False)
        or not hasattr(scheduler, "sigmas")
    ):
        raise ValueError(
            "`scheduler` must be one for flow matching, from noise to data: FlowMatchEulerDiscreteScheduler or "
            'another with `use_flow_sigmas=True` and `prediction_type="flow_prediction"`, got '
            f"{type(scheduler).__name__} with {config.get('prediction_type')!r}."
        )


def set_times(scheduler, num_inference_steps: int, sigmas, num_tokens: int, device: torch.device):
    """
    Sets the scheduler's times, from noise to data; `num_tokens` are those of an image, for its dynamic shift.

    Raises:
        ValueError: if `sigmas` are given, and the scheduler takes none; or it is none for flow matching.
    """
    config, shift = scheduler.config, {}
    if config.get("use_dynamic_shifting", False):
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        given = [config[name] for name in names if config.get(name) is not None]
        shift["mu"] = calculate_shift(num_tokens, *(given if len(given) == len(names) else ()))
    if sigmas is not None:
        sigmas = np.asarray([*map(float, sigmas)])
    elif "sigmas" in signature(scheduler.set_timesteps).parameters:
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)  # its own would be shifted twice
    retrieve_timesteps(scheduler, num_inference_steps, device, sigmas=sigmas, **shift)
    if scheduler.sigmas.max() > 1:
        raise ValueError(f"`scheduler` must be one for flow matching, got {type(scheduler).__name__}.")
    scheduler.set_begin_index(0)


__all__ = ["check_scheduler", "set_times"]
