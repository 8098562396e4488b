"""Guidance: a velocity that leads towards a prompt and away from another."""

from numbers import Real

import numpy as np
import torch
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.guider_utils import rescale_noise_cfg


def guided(
    conditional: torch.Tensor,
    unconditional: torch.Tensor,
    scale: float,
    rescale: float = 0.0,
    use_zero_star: bool = False,
    without_images: torch.Tensor | None = None,
    image_scale: float | None = None,
) -> torch.Tensor:
    """
    Args:
        conditional, unconditional (`torch.Tensor` of shape `(N, C, h, w)`): velocities.
        scale (`float`): 1 is the conditional one.
        rescale (`float`): how far the result gets the standard deviation of the conditional one, in [0, 1].
        use_zero_star (`bool`): first projects the conditional velocity onto the unconditional one, so that guidance
            adds only what is not in line with it (CFG-Zero*, https://arxiv.org/abs/2503.18886).
        without_images (`torch.Tensor` of shape `(N, C, h, w)`, *optional*): the unconditional velocity without the
            images that are drawn from, which guidance leads away from, too (https://arxiv.org/abs/2211.09800).
        image_scale (`float`, *optional*): its scale; 1 is the same as without it.

    Returns:
        `torch.Tensor` of shape `(N, C, h, w)`.
    """
    if use_zero_star:
        share = cfg_zero_star_scale(conditional.flatten(1), unconditional.flatten(1))
        unconditional = unconditional * share[:, :, None, None]
    velocity = unconditional + scale * (conditional - unconditional)
    if without_images is not None:
        velocity = velocity + (image_scale - 1) * (unconditional - without_images)
    return rescale_noise_cfg(velocity, conditional, rescale) if rescale > 0 else velocity


def check_guidance(scale, rescale, interval, use_zero_star):
    """Raises a `ValueError` that names the argument."""
    if not _is_number(scale):
        raise ValueError(f"`guidance_scale` must be a finite number, got {scale!r}.")
    if not _is_number(rescale) or not 0 <= rescale <= 1:
        raise ValueError(f"`guidance_rescale` must be a number in [0, 1], got {rescale!r}.")
    pair = isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_is_number, interval))
    if not pair or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"`guidance_interval` must be two numbers that rise in [0, 1], got {interval!r}.")
    if not isinstance(use_zero_star, bool | np.bool_):
        raise ValueError(f"`use_zero_star` must be True or False, got {use_zero_star!r}.")


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(value))


__all__ = ["check_guidance", "guided"]
