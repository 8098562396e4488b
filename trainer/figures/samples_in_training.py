"""What the model draws and answers while it trains."""

import contextlib
import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import TrainerCallback

from modeling_rosetta import RosettaPipeline


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
        paused (`Callable`, *optional*): makes the context to do it in, as [`RosettaTrainer.paused`] does, so that it
            does not count as time of training.
    """

    def __init__(self, settings, processor, vae=None, paused=contextlib.nullcontext):
        self.settings, self.processor, self.vae, self.paused = settings, processor, vae, paused

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.settings.steps and state.global_step < state.max_steps:
            return
        with self.paused():
            self._sample(args, state, model)

    def _sample(self, args, state, model):
        was_training = model.training
        model.eval()
        devices = [args.device] if args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            images, answers = self._draw(model, args.seed), [self._answer(model, **q) for q in self.settings.questions]
        model.train(was_training)
        if state.is_world_process_zero:
            self._write(Path(args.output_dir, FOLDER, f"step-{state.global_step:08}"), images, answers)

    def _draw(self, model, seed: int) -> list:
        if not self.settings.prompts:
            return []
        pipeline = RosettaPipeline(model, self.vae, FlowMatchEulerDiscreteScheduler(), self.processor)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            self.settings.prompts,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for _ in self.settings.prompts],
        ).images

    def _answer(self, model, question: str, image: str | None = None) -> str:
        parts = [] if image is None else [{"type": "image", "image": image}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

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
