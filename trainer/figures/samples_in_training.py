"""What the model draws and answers while it trains."""

import contextlib
import json
from pathlib import Path

from transformers import TrainerCallback

from ..evaluation.in_training import aside, under_test
from ..evaluation.task import Drawing, Question
from .trackers import trackers


FOLDER = "samples"
NUM_INFERENCE_STEPS = 30
GUIDANCE_SCALE = 5.0
MAX_NEW_TOKENS = 64


class SamplesInTraining(TrainerCallback):
    """
    Draws fixed prompts from fixed noise and answers fixed questions greedily, and writes both to
    `output_dir/samples/step-N`. All ranks take part, as a sharded model needs, and the main one writes. The random
    state of the training is left alone.

    Args:
        settings ([`SampleSettings`]): what is asked, and every how many steps.
        processor (`RosettaProcessor`)
        vae (`AutoencoderKLFlux2`, *optional*): needed to draw.
        callbacks (`list[TrainerCallback]`, *optional*): of the run; the trackers among them are shown both.
        paused (`Callable`, *optional*): makes the context to do it in, as [`RosettaTrainer.paused`] does, so that it
            does not count as time of training.
    """

    def __init__(self, settings, processor, vae=None, callbacks=(), paused=contextlib.nullcontext):
        self.settings, self.processor, self.vae, self.paused = settings, processor, vae, paused
        self.callbacks = callbacks

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.settings.steps and state.global_step < state.max_steps:
            return
        with self.paused():
            self._sample(args, state, model)

    def _sample(self, args, state, model):
        with aside(model, args.device):
            tested = under_test(model, self.processor, self.vae)
            images = self._draw(tested, args.seed) if self.settings.prompts else []
            answers = [tested.answers([self._question(**question)])[0] for question in self.settings.questions]
        if state.is_world_process_zero:
            self._write(Path(args.output_dir, FOLDER, f"step-{state.global_step:08}"), images, answers)
            for tracker in trackers(self.callbacks):
                tracker.show(self.settings.prompts, images, self.settings.questions, answers, state.global_step)

    def _draw(self, tested, seed: int) -> list:
        settings = {"num_inference_steps": NUM_INFERENCE_STEPS, "guidance_scale": GUIDANCE_SCALE}
        return tested.drawings([Drawing(prompt, seed, settings) for prompt in self.settings.prompts])

    def _question(self, question: str, image: str | None = None) -> Question:
        parts = [] if image is None else [{"type": "image", "image": image}]
        return Question([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}], MAX_NEW_TOKENS)

    def _write(self, folder: Path, images: list, answers: list[str]):
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            image.save(folder / f"{number}.png")
        written = {"prompts": self.settings.prompts, "questions": self.settings.questions, "answers": answers}
        (folder / "samples.json").write_text(json.dumps(written, indent=1))


def read_samples(output_dir: str | Path) -> list[dict]:
    """What was written so far: for each step `step`, `prompts` with their `images`, `questions` and `answers`."""
    found = []
    for file in sorted(Path(output_dir, FOLDER).glob("step-*/samples.json")):
        images = [
            f"{FOLDER}/{file.parent.name}/{image.name}" for image in sorted(file.parent.glob("*.png"), key=_number)
        ]
        found.append({"step": int(file.parent.name[5:]), "images": images, **json.loads(file.read_text())})
    return found


def _number(file: Path) -> int:
    return int(file.stem)


__all__ = ["SamplesInTraining", "read_samples"]
