"""A scheduler of diffusers, for flow matching: which ones, and their times."""

import threading
from contextlib import contextmanager
from inspect import signature

import numpy as np
import torch
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, retrieve_timesteps


_in_use = set()  # the schedulers of drawings that go on, by id
_lock = threading.Lock()


@contextmanager
def in_use(scheduler):
    """A scheduler keeps the state of one drawing: a second one with it is refused while the first goes on."""
    with _lock:
        if id(scheduler) in _in_use:
            raise RuntimeError(
                "This pipeline's scheduler is in use by a drawing that has not ended: give each thread a pipeline "
                "of the same components with a scheduler of its own, `type(pipe)(**{**pipe.components, "
                '"scheduler": pipe.scheduler.from_config(pipe.scheduler.config)})`.'
            )
        _in_use.add(id(scheduler))
    try:
        yield
    finally:
        _in_use.discard(id(scheduler))


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


def set_times(scheduler, num_inference_steps: int, sigmas, timesteps, num_tokens: int, device: torch.device):
    """
    Sets the scheduler's times, from noise to data: equal steps, or from `sigmas`, or from `timesteps`, which are
    sigmas times `num_train_timesteps`. `num_tokens` are those of an image, for the dynamic shift.

    Raises:
        ValueError: if times are given, and the scheduler takes none; or it is none for flow matching.
    """
    config, shift = scheduler.config, {}
    if config.get("use_dynamic_shifting", False):
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        given = [config[name] for name in names if config.get(name) is not None]
        shift["mu"] = calculate_shift(num_tokens, *(given if len(given) == len(names) else ()))
    if timesteps is not None:
        sigmas = [float(timestep) / config["num_train_timesteps"] for timestep in timesteps]
    if sigmas is not None:
        sigmas = np.asarray([*map(float, sigmas)])
    elif "sigmas" in signature(scheduler.set_timesteps).parameters:
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)  # its own would be shifted twice
    retrieve_timesteps(scheduler, num_inference_steps, device, sigmas=sigmas, **shift)
    if scheduler.sigmas.max() > 1:
        raise ValueError(f"`scheduler` must be one for flow matching, got {type(scheduler).__name__}.")
    scheduler.set_begin_index(0)


__all__ = ["check_scheduler", "in_use", "set_times"]
