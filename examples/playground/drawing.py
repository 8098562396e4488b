"""A drawing, step by step, with previews of what it is becoming."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from PIL import Image

from .streaming import MODEL_IN_USE


PREVIEWS = 10  # of a drawing, since each costs a pass of the VAE


@dataclass
class Progress:
    """
    Attributes:
        step (`int`): how many of `steps` are done.
        images (`list[PIL.Image.Image]`, *optional*): after all steps the drawn ones; after some of the others those
            that are foreseen.
    """

    step: int
    steps: int
    images: list[Image.Image] | None = None

    @property
    def is_drawn(self) -> bool:
        return self.step == self.steps


@torch.no_grad()
def stream_drawing(
    pipe, prompt: str, seeds: list[int], num_previews: int = PREVIEWS, **arguments
) -> Iterator[Progress]:
    """
    An image for each seed, the same that it gives alone.

    Args:
        pipe ([`RosettaPipeline`])
        prompt (`str`)
        seeds (`list[int]`)
        num_previews (`int`, defaults to 10): at most.
        arguments: further ones of the pipeline.

    Raises:
        ValueError: if an argument is not valid.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawing = pipe.steps(prompt, generator=generators, num_images_per_prompt=len(seeds), **arguments)
    with MODEL_IN_USE, closing(drawing):
        step, done = next(drawing), 0
        while True:
            velocity = pipe.predict_velocity(*step)
            # Where a straight line from here ends: noise - data is the velocity, so the data is x_t - t * v.
            clean, steps, done = step.latents - step.sigma * velocity, pipe.num_timesteps, done + 1
            try:
                step = drawing.send(velocity)
            except StopIteration as drawn:
                yield Progress(steps, steps, drawn.value.images)
                return
            is_shown = done * num_previews // steps > (done - 1) * num_previews // steps
            yield Progress(done, steps, pipe.decode_latents(clean) if is_shown else None)


__all__ = ["Progress", "stream_drawing"]
