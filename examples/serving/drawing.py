"""Drawings that are computed together: in each step those of one size are one batch, which a new one joins."""

from collections.abc import Generator, Iterable

import torch

from modeling_rosetta import RosettaPipeline
from modeling_rosetta.drawing_steps_rosetta import Step, tokens_of_rows
from modeling_rosetta.step_cache_rosetta import StepCache

from .errors import from_value_error
from .jobs import Job
from .rows import joined_caches, joined_columns


class DrawingJob(Job):
    """
    Args:
        arguments (`dict`): of the pipeline's call, for one prompt.

    Tells one item, the images `list[PIL.Image.Image]`.
    """

    def __init__(self, arguments: dict):
        super().__init__(arguments["num_images_per_prompt"])
        self.arguments = arguments


class _Drawing:
    """
    A drawing in flight, with a pipeline and a scheduler of its own.

    Attributes:
        step ([`Step`], *optional*): that comes next.
    """

    def __init__(self, job: DrawingJob, pipe: RosettaPipeline):
        self.job = job
        scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
        self.pipe = RosettaPipeline(**{**pipe.components, "scheduler": scheduler})
        self.pipe.set_progress_bar_config(disable=True)
        self.steps: Generator = self.pipe.steps(**job.arguments)
        self.step: Step | None = None

    def go_on(self, velocity: torch.Tensor | None) -> bool:
        """Takes what the transformer has made of the step, `(L, C)`; whether there is another step."""
        try:
            given = None if velocity is None else self.pipe.guide(velocity, self.step.latents)
            self.step = self.steps.send(given)
            return True
        except StopIteration as drawn:
            self.job.tell(drawn.value.images)
            self.job.end()
        except ValueError as error:
            self.job.end(from_value_error(error) if velocity is None else error)
        except Exception as error:
            self.job.end(error)
        return False


class Drawings:
    """
    Args:
        pipe ([`RosettaPipeline`])
        most (`int`): images that are drawn together.
        metrics ([`Metrics`])
    """

    def __init__(self, pipe: RosettaPipeline, most: int, metrics):
        self.pipe, self.most, self.metrics = pipe, most, metrics
        self.drawings: list[_Drawing] = []
        self._run = StepCache(pipe.transformer, 0.0)
        self._joined: dict[tuple, tuple[list[dict], dict]] = {}

    @property
    def size(self) -> int:
        return sum(drawing.job.size for drawing in self.drawings)

    def jobs(self) -> list[Job]:
        return [drawing.job for drawing in self.drawings]

    def step(self, new: Iterable[DrawingJob]):
        """New ones are read, and all make a step."""
        for job in new:
            drawing = _Drawing(job, self.pipe)
            self.drawings += [drawing] * drawing.go_on(None)
        self.leave([drawing.job for drawing in self.drawings if drawing.job.is_left])
        for grid_hw in {drawing.step.latents.shape[2:] for drawing in self.drawings}:
            together = [drawing for drawing in self.drawings if drawing.step.latents.shape[2:] == grid_hw]
            with self.metrics.denoising(sum(drawing.job.size for drawing in together)):
                velocities = self._velocities(grid_hw, together)
            ended = [d.job for d, velocity in zip(together, velocities, strict=True) if not d.go_on(velocity)]
            self.leave(ended)

    def leave(self, jobs: list[Job]):
        for drawing in self.drawings:
            if drawing.job in jobs:
                drawing.steps.close()
        self.drawings = [drawing for drawing in self.drawings if drawing.job not in jobs]
        grids = {drawing.step.latents.shape[2:] for drawing in self.drawings}
        self._joined = {grid_hw: kept for grid_hw, kept in self._joined.items() if grid_hw in grids}

    def _velocities(self, grid_hw: tuple, drawings: list[_Drawing]) -> Iterable[torch.Tensor]:
        given = [drawing.step.prompt_inputs for drawing in drawings]
        before, inputs = self._joined.get(grid_hw, ([], {}))
        if len(before) != len(given) or any(a is not b for a, b in zip(before, given, strict=True)):
            inputs = self._join(given)
            self._joined[grid_hw] = (given, inputs)
        tokens, times = zip(*(tokens_of_rows(*drawing.step) for drawing in drawings), strict=True)
        velocity = self._run.velocity(inputs, torch.cat(tokens), torch.cat(times))
        return velocity.split([len(own) for own in tokens])

    def _join(self, inputs: list[dict]) -> dict:
        """The rows of drawings of one size."""
        if len(inputs) == 1:
            return inputs[0]
        rows = {key: [own[key] for own in inputs] for key in inputs[0]}
        return {
            "input_ids": torch.cat(rows["input_ids"]),
            "token_type_ids": torch.cat(rows["token_type_ids"]),
            "latent_grid_hw": torch.cat(rows["latent_grid_hw"]),
            "position_ids": torch.cat(rows["position_ids"], dim=1),
            "attention_mask": joined_columns(rows["attention_mask"]),
            "past_key_values": joined_caches(rows["past_key_values"], self.pipe.transformer.config),
        }


__all__ = ["DrawingJob", "Drawings"]
