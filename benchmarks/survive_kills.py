"""
Kills a training run again and again, at random moments and while it saves, goes on with it each time, and compares
what it ends with, bit for bit, with a run that nobody disturbed. Prints a table and writes it as JSON.

    python benchmarks/survive_kills.py [--kills N] [--steps N] [--output FILE]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

from examples.miniature.tokenizer import train_tokenizer  # noqa: E402
from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, RosettaProcessor  # noqa: E402
from trainer import (  # noqa: E402
    DataSource,
    RosettaDataCollator,
    RosettaDataStream,
    RosettaTrainer,
    RosettaTrainingArguments,
    last_complete_checkpoint,
    train_backbone,
)
from trainer.checkpoints.folders import SAVING  # noqa: E402


SAVE_STEPS = 2
MOMENTS = ("saving", "training", "saving", "starting")
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "latent_channels": 8,
    "latent_hidden_size": 64,
    "attention_dropout": 0.1,  # draws on the generator that is part of a checkpoint
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}


def write_data(folder: Path):
    """Texts, questions about images, latents of images to draw, and a few lines that cannot be read."""
    (folder / "images").mkdir(parents=True)
    texts = [json.dumps({"text": f"This is text {i}. " + "It goes on. " * (i % 7)}) for i in range(300)]
    questions = []
    for i in range(60):
        Image.new("RGB", (16, 16 + 8 * (i % 2)), (4 * i, 7 * i % 256, 100)).save(folder / "images" / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nWhich is it?"}, {"from": "gpt", "value": f"Number {i}."}]
        questions.append(json.dumps({"image": f"images/{i}.png", "conversations": turns}))
    for name, lines in (("texts", texts), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, *["{"] * 5]) + "\n")
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(CONFIG["latent_channels"], 4, 4, generator=generator) for _ in range(60)]
    drawings = {
        "caption": [f"Draw number {i}." for i in range(60)],
        "latents": [safetensors.torch.save({"latents": image}) for image in latents],
    }
    Dataset.from_dict(drawings).to_parquet(folder / "drawings.parquet")


def train(data: Path, output_dir: Path, steps: int):
    """The run: shielding into MAOP, a cosine schedule, accumulation, an average of the weights, two workers that mix
    and pack a stream, and many saves."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = train_tokenizer((data / "texts.jsonl").read_text().splitlines(), vocab_size=400)
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 16 * 16})
    processor = RosettaProcessor(images, tokenizer, base_size=64)
    token_ids = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    config = RosettaConfig(
        vocab_size=len(tokenizer), **{name: getattr(processor, name) for name in token_ids}, **CONFIG
    )
    model = train_backbone(RosettaForCausalLMAndImageGeneration(config))
    sources = [
        DataSource("lm", str(data / "texts.jsonl"), weight=0.4, streaming=True),
        DataSource("mmu", str(data / "questions.jsonl"), weight=0.3),
        DataSource("t2i", str(data / "drawings.parquet"), weight=0.3),
    ]
    arguments = RosettaTrainingArguments(
        str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        dataloader_num_workers=2,
        learning_rate=3e-3,
        generation_learning_rate=1e-2,
        lr_scheduler_type="cosine",
        shield_steps=steps // 3,
        ema_decay=0.9,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = RosettaTrainer(
        model,
        arguments,
        train_dataset=RosettaDataStream(sources, processor, max_length=96, max_skipped_share=0.5),
        data_collator=RosettaDataCollator(tokenizer.pad_token_id),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))


class Run:
    """A training run in a process of its own."""

    def __init__(self, data: Path, output_dir: Path, steps: int):
        self.output_dir = output_dir
        self.log = output_dir.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--steps", str(steps), "--run", str(data), str(output_dir)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_DATASETS_CACHE": str(data / "cache")},
            start_new_session=True,  # to be killed with its workers
        )
        self.first_step = self.last_step()

    def last_step(self) -> int:
        checkpoint = last_complete_checkpoint(self.output_dir)
        return 0 if checkpoint is None else int(checkpoint.rsplit("-", 1)[1])

    def is_saving(self) -> bool:
        return any((self.output_dir / SAVING).glob("*"))

    def wait_until(self, condition):
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"The run ended by itself, with status {self.process.returncode}: {self.log.name}.")
            time.sleep(0.0005)

    def finish(self):
        if self.process.wait() != 0:
            raise RuntimeError(f"The run failed with status {self.process.returncode}: {self.log.name}.")
        self.log.close()

    def signal(self, number: int):
        os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()


def kill_once(run: Run, moment: str, not_before: int, start_seconds: float, chance: random.Random) -> dict:
    """Kills `run` at a random time of a kind of moment, once it has saved step `not_before`."""
    if moment == "starting":
        time.sleep(chance.uniform(0, start_seconds))
    else:
        run.wait_until(lambda: run.last_step() >= max(not_before, run.first_step + SAVE_STEPS))
        time.sleep(chance.uniform(0, 0.3))
    while moment == "saving":
        run.wait_until(run.is_saving)
        time.sleep(chance.uniform(0, 0.03))
        run.signal(signal.SIGSTOP)
        if run.is_saving():
            break
        run.signal(signal.SIGCONT)  # too late
    run.kill()
    leftover = sorted(file.name for file in (run.output_dir / SAVING).glob("*/*"))
    return {
        "moment": moment,
        "went on from": run.first_step,
        "last complete": run.last_step(),
        "files left half way": len(leftover),
    }


def differences(one: Path, other: Path) -> list[str]:
    """What the two runs do not agree in to the bit: weights, averages, optimizer, schedule, random states, logs."""
    differing = []
    last = Path(last_complete_checkpoint(one)).name
    for name in (f"{last}/model.safetensors", f"{last}/ema.safetensors", "ema/model.safetensors"):
        if not _equal(load_file(one / name), load_file(other / name)):
            differing.append(name)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        if not _equal(*(torch.load(folder / last / name, weights_only=False) for folder in (one, other))):
            differing.append(name)
    if not _equal(*(json.loads((folder / last / "data_position_0.json").read_text()) for folder in (one, other))):
        differing.append("data_position_0.json")
    states = [json.loads((folder / last / "trainer_state.json").read_text()) for folder in (one, other)]
    losses = [[(log["step"], log["loss"], log["grad_norm"]) for log in state["log_history"]] for state in states]
    return differing if losses[0] == losses[1] else [*differing, "losses"]


def _equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else one == other


def survive(folder: Path, kills: int, steps: int, seed: int = 0) -> dict:
    """Both runs; what happened at each kill, and in what the runs differ in the end."""
    data, undisturbed, disturbed = (folder / name for name in ("data", "undisturbed", "disturbed"))
    write_data(data)
    start = time.monotonic()
    run = Run(data, undisturbed, steps)
    run.wait_until(lambda: run.last_step() > 0)
    start_seconds = time.monotonic() - start
    run.finish()
    chance, table = random.Random(seed), []
    for number in range(kills):
        run = Run(data, disturbed, steps)
        not_before = (steps - 2 * SAVE_STEPS) * number // kills
        table.append(kill_once(run, MOMENTS[number % len(MOMENTS)], not_before, start_seconds, chance))
    Run(data, disturbed, steps).finish()
    return {"kills": table, "differences": differences(undisturbed, disturbed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", type=Path, nargs=2, help=argparse.SUPPRESS)  # the run that is killed
    arguments = parser.parse_args()
    if arguments.run is not None:
        train(*arguments.run, arguments.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = survive(Path(folder), arguments.kills, arguments.steps)
    columns = list(result["kills"][0])
    print("kill  " + "  ".join(columns))
    for number, kill in enumerate(result["kills"], 1):
        print(f"{number:4}  " + "  ".join(f"{kill[column]!s:>{len(column)}}" for column in columns))
    print(f"differences from the undisturbed run: {', '.join(result['differences']) or 'none'}")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["differences"] else 0)


if __name__ == "__main__":
    main()
