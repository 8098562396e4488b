"""
The memory of a training step as it is estimated from shapes, beside the peak that real steps take on a CPU: several
models, rows and ways of training, on one process and sharded over two and three. Each runs in processes of its own,
whose peak of resident memory, less what they had before the model, is the measured one; the allocator gives freed
memory back at once. Prints a table and writes it as JSON.

    python benchmarks/estimated_memory.py [--output FILE] [--only NAME]
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "trainer")]

import torch  # noqa: E402
from ranks import run_on_ranks  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from turns import write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from trainer import (  # noqa: E402
    RosettaDataCollator,
    RosettaTrainer,
    RosettaTrainingArguments,
    train_backbone,
    train_projectors,
)
from trainer.lora import lora_config  # noqa: E402
from trainer.stages.step_memory import full_row, step_memory  # noqa: E402


LENGTH, IMAGE_TOKENS, STEPS = 2048, 256, 3
SIZES = {
    "vocab_size": 16_384,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "latent_channels": 32,
    "latent_hidden_size": 256,
    "image_token_id": 2,
    "vision_start_token_id": 0,
    "vision_end_token_id": 1,
    "vision_config": {
        "depth": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_heads": 4,
        "patch_size": 8,
        "out_hidden_size": 512,
        "deepstack_visual_indexes": [1],
    },
}
# Freed memory goes back to the system at once, so that what is resident is what is alive.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


@dataclass
class Case:
    """
    Args:
        task (`str`): of which the rows are full.
        ranks (`int`): over which it is sharded, if there are several.
        trains (`str`): `"backbone"`, `"projectors"` or `"lora"`.
        recomputes (`bool`): its activations in the backward pass.
        accumulation (`int`): micro-batches of a step.
        ema_decay (`float`, *optional*)
    """

    task: str
    ranks: int = 1
    trains: str = "backbone"
    recomputes: bool = False
    accumulation: int = 1
    ema_decay: float | None = None

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        model = RosettaForCausalLMAndImageGeneration._from_config(
            RosettaConfig(**SIZES), attn_implementation={"": "sdpa", "vision_config": "sdpa"}
        )
        if self.trains == "lora":
            model.add_adapter(lora_config(model.config, r=8))
            return model
        return (train_projectors if self.trains == "projectors" else train_backbone)(model)

    def row(self) -> list[dict]:
        return full_row(RosettaConfig(**SIZES), self.task, LENGTH, IMAGE_TOKENS)

    def training(self, folder: str, sharded: bool = False) -> RosettaTrainingArguments:
        fsdp = {"fsdp": True, "fsdp_config": {"activation_checkpointing": self.recomputes}} if sharded else {}
        return RosettaTrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=self.accumulation,
            ema_decay=self.ema_decay,
            gradient_checkpointing=self.recomputes and not sharded,
            use_cpu=True,
            optim="adamw_torch_fused",
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **fsdp,
        )

    def batch(self) -> dict:
        return collator()([self.row()])


CASES = {
    "text": Case("lm"),
    "text, recomputed": Case("lm", recomputes=True),
    "drawing, accumulated, with an average": Case("t2i", accumulation=2, ema_decay=0.99),
    "questions, projectors alone": Case("mmu", trains="projectors"),
    "questions, LoRA, recomputed": Case("mmu", trains="lora", recomputes=True),
    "text, 2 ranks": Case("lm", ranks=2),
    "drawing, 3 ranks, recomputed, accumulated": Case("t2i", ranks=3, recomputes=True, accumulation=2),
}


def collator() -> RosettaDataCollator:
    return RosettaDataCollator(0, LENGTH, pad_to_multiple_of=LENGTH)


def resident(which: str) -> int:
    """Bytes: `"VmRSS"` now, `"VmHWM"` at the peak since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


class PeakOfLaterSteps(TrainerCallback):
    """The first step makes the optimizer's state, and what kernels keep."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            Path("/proc/self/clear_refs").write_text("5")
        self.peak = resident("VmHWM")


def measure(name: str, file: str):
    case, later = CASES[name], PeakOfLaterSteps()
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()  # starts libraries and threads
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        trainer = RosettaTrainer(
            case.model(),
            case.training(folder, sharded=case.ranks > 1),
            train_dataset=[case.row()] * 64,
            data_collator=collator(),
            callbacks=[later],
        )
        trainer.train()
    if trainer.is_world_process_zero():
        Path(file).write_text(json.dumps(later.peak - before))


def measure_alone(process: int, name: str, file: str):
    torch.set_num_threads(1)
    measure(name, file)


def compare(name: str) -> dict[str, float]:
    """Both, in GB."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "measured.json")
        if case.ranks > 1:
            run_on_ranks(measure, case.ranks, name, str(file))
        else:
            torch.multiprocessing.spawn(measure_alone, (name, str(file)))
        measured = json.loads(file.read_text())
        training = case.training(folder)
        estimated = step_memory(case.model, case.batch, training, case.ranks, case.accumulation, case.recomputes)
    return {
        "estimated GB": estimated.peak / 1e9,
        "measured GB": measured / 1e9,
        "ratio": estimated.peak / measured,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/estimated_memory.json"))
    parser.add_argument("--only", choices=list(CASES))
    arguments = parser.parse_args()
    os.environ.update(ALLOCATOR)
    rows = {}
    for name in [arguments.only] if arguments.only else CASES:
        rows[name] = row = compare(name)
        print(f"{name:44}" + "".join(f"{figure:8.3f}" for figure in row.values()), flush=True)
    write(arguments.output, {"columns": ["estimated GB", "measured GB", "ratio"], "rows": rows})


if __name__ == "__main__":
    main()
