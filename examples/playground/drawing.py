"""A drawing, step by step, with previews of what it is becoming."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from .streaming import stream


PREVIEWS = 10  # of a drawing, since each costs a pass of the VAE


@dataclass
class Progress:
    """
    Attributes:
        step (`int`): of `steps`, from 1.
        images (`list[PIL.Image.Image]`, *optional*): of the last step the drawn ones; of some steps before it those
            that are foreseen.
    """

    step: int
    steps: int
    images: list[Image.Image] | None = None

    @property
    def is_drawn(self) -> bool:
        return self.step == self.steps and self.images is not None


def foreseen_images(pipe, latents: torch.Tensor, velocity: torch.Tensor) -> list[Image.Image]:
    """
    The images where straight lines lead from the latents after a step: its clean latents are `x_t - t * v`, with the
    velocity v = noise - data that the step was taken with.

    Args:
        latents, velocity (`torch.Tensor` of shape `(N, C, h, w)`): as a callback of the pipeline gets them.
    """
    sigma = pipe.scheduler.sigmas[pipe.scheduler.step_index].to(latents)
    return pipe.decode_latents(latents - sigma * velocity)


def stream_drawing(
    pipe, prompt: str, seeds: list[int], num_previews: int = PREVIEWS, **arguments
) -> Iterator[Progress]:
    """
    An image for each seed, the same that it gives alone.

    Args:
        prompt (`str`)
        seeds (`list[int]`)
        num_previews (`int`, defaults to 10): at most.
        arguments: further ones of the pipeline.

    Raises:
        ValueError: if an argument is not valid.
    """

    def run(put):
        def after_step(pipe, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
            steps = pipe.num_timesteps
            is_shown = step + 1 < steps and step * num_previews // steps > (step - 1) * num_previews // steps
            put(Progress(step + 1, steps, foreseen_images(pipe, **tensors) if is_shown else None))
            return {}

        images = pipe(
            prompt,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_images_per_prompt=len(seeds),
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["latents", "velocity"],
            **arguments,
        ).images
        put(Progress(pipe.num_timesteps, pipe.num_timesteps, images))

    return stream(run)


__all__ = ["Progress", "foreseen_images", "stream_drawing"]
