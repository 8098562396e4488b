"""
Training steps of Rosetta-3.8B-A1B on one GPU, as the last stage makes them: rows of 8,192 tokens of texts, questions
about images and images to draw, bf16 over fp32 weights, AdamW, activations recomputed. Needs 80 GB. Prints and writes
as JSON tokens a
second, MFU and peak memory with MAOP and without it, and the operations that most of the time goes to.

    python benchmarks/full_step_gpu.py [--output FILE] [--steps N]
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from turns import write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from trainer import RosettaDataCollator, RosettaTrainer, RosettaTrainingArguments, train_backbone  # noqa: E402


LENGTH, SIDE = 8192, 32  # of a row, and of an image in tokens: 512 x 512 pixels
WARM_UP = 3  # steps in which flex attention is compiled


def row(config: RosettaConfig, length: int, side: int) -> list[dict]:
    """Two images to draw, two questions about images, and a text that fills up the row."""
    image, prompt = side * side, side * side // 8
    vision = config.vision_config
    merge, patch = vision.spatial_merge_size, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    vit, vae = config.token_type_index("pixel_values"), config.token_type_index("noisy_latents")

    def sample(types: list[int], **images) -> dict:
        types = torch.tensor(types)
        ids = torch.randint(config.vocab_size, types.shape)
        return {"input_ids": ids, "token_type_ids": types, "labels": ids.masked_fill(types > 0, -100), **images}

    def drawing() -> dict:
        latents = torch.randn(image, config.latent_channels)
        return sample([0] * prompt + [vae] * image, latents=latents, latent_grid_hw=torch.tensor([[side, side]]))

    def question() -> dict:
        grid = torch.tensor([[1, side * merge, side * merge]])
        pixels = torch.randn(image * merge**2, patch)
        return sample([vit] * image + [0] * prompt, pixel_values=pixels, image_grid_thw=grid)

    return [drawing(), drawing(), question(), question(), sample([0] * (length - 4 * (image + prompt)))]


class ProfileLastStep(TrainerCallback):
    def __init__(self, device: torch.device):
        self.is_gpu = device.type == "cuda"
        self.profiler = profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.is_gpu)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            self.profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            self.profiler.stop()

    def shares(self, number: int = 15) -> dict[str, float]:
        """Of the time of all operations, by their names, without what they call."""
        time_of = "self_device_time_total" if self.is_gpu else "self_cpu_time_total"
        times = {event.key: getattr(event, time_of) for event in self.profiler.key_averages()}
        total = sum(times.values())
        return {name: times[name] / total for name in sorted(times, key=times.get, reverse=True)[:number]}


def train(model, length: int, side: int, steps: int, maop: bool, callbacks=None) -> dict[str, float]:
    """Trains on the same row again and again; returns the figures of the last `steps` steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = RosettaTrainingArguments(
            folder,
            max_steps=WARM_UP + steps,
            logging_steps=1,
            per_device_train_batch_size=1,
            bf16=True,
            gradient_checkpointing=True,
            use_cpu=model.device.type == "cpu",
            learning_rate=1e-5,
            generation_learning_rate=1e-4,
            maop=maop,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer = RosettaTrainer(
            model,
            arguments,
            train_dataset=[row(model.config, length, side)] * (WARM_UP + steps),
            data_collator=RosettaDataCollator(0, length, pad_to_multiple_of=length),
            callbacks=callbacks,
        )
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log][WARM_UP:]
    # The mean of rates over steps of the same tokens is harmonic.
    figures = {
        name: len(logs) / sum(1 / log[name] for log in logs)
        for name in ("tokens_per_second", "mfu")
        if name in logs[-1]
    }
    if model.device.type == "cuda":
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    figures["maop_cosine"] = logs[-1].get("maop_cosine")
    return figures


def measure(config: RosettaConfig, length: int, side: int, steps: int, device: str) -> dict:
    torch.manual_seed(0)
    attention = {"": "flex_attention" if device == "cuda" else "sdpa", "vision_config": "sdpa"}
    with torch.device(device):
        model = RosettaForCausalLMAndImageGeneration._from_config(config, attn_implementation=attention)
    train_backbone(model)
    result = {}
    for maop in (True, False):
        result[f"with{'' if maop else 'out'} MAOP"] = train(model, length, side, steps, maop)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    profiled = ProfileLastStep(model.device)
    train(model, length, side, 1, True, [profiled])
    return {**result, "shares of a step": profiled.shares()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/full_step_gpu.json"))
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a GPU of about 80 GB, and there is none.")
    result = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        **measure(RosettaConfig(), LENGTH, SIDE, arguments.steps, "cuda"),
    }
    print(json.dumps(result, indent=2))
    write(arguments.output, result)


if __name__ == "__main__":
    main()
