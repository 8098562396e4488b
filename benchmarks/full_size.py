"""
The released size on a CPU: a synthetic set of the authors' files (Rosetta-3.8B-A1B as made for inference, random
numbers, 17.4 GB in fp32) is converted, loaded in bfloat16, and reads a text and takes a denoising step.

Each step is a process of its own, so that its peak memory is its own: what is resident, and of it what is anonymous,
that is not a mapped file whose pages the system may take back. Seconds stand beside those of plainly reading and
copying the same files. Prints a table and writes it as JSON.

    python benchmarks/full_size.py [--directory DIR] [--output FILE]

DIR takes up to 53 GB; the files in it are removed at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from diffusers import AutoencoderKLFlux2, DiffusionPipeline  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from examples.miniature.tokenizer import train_tokenizer  # noqa: E402
from hub_upload import convert, revert  # noqa: E402
from hub_upload.authors_layout import ROTARY, empty_model, rotary_frequencies, source_shapes, sources  # noqa: E402
from hub_upload.weight_files import write_weights  # noqa: E402
from modeling_rosetta import RosettaConfig  # noqa: E402


GB = 1e9
SHARD = "5GB"


def make(folder: Path):
    """The authors' files, a tokenizer and a VAE."""
    config = RosettaConfig(timestep_token_id=0)
    shapes = source_shapes(empty_model(config).state_dict(), sources(config))
    shapes[ROTARY] = tuple(rotary_frequencies(config).shape)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in sorted(shapes.items())}
    generator = torch.Generator().manual_seed(0)

    def random(key: str) -> torch.Tensor:
        if key == ROTARY:
            return rotary_frequencies(config)
        if "norm" in key:
            return torch.ones(shapes[key])
        return torch.empty(shapes[key]).uniform_(-0.03, 0.03, generator=generator)

    (folder / "theirs").mkdir()
    write_weights(folder / "theirs", tensors, random, SHARD)
    train_tokenizer(["Rosetta"]).save_pretrained(folder / "tokenizer")
    AutoencoderKLFlux2().save_pretrained(folder / "vae")


def read(folder: Path):
    """Plainly, every file, once."""
    buffer = bytearray(1 << 24)
    for file in sorted((folder / "theirs").iterdir()):
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def copy(folder: Path):
    """Plainly, every file."""
    shutil.copytree(folder / "theirs", folder / "copy")


def to_repository(folder: Path):
    convert(folder / "theirs", folder / "ours", folder / "tokenizer", folder / "vae", max_shard_size=SHARD)


def to_authors_layout(folder: Path):
    revert(folder / "ours", folder / "reverted", max_shard_size=SHARD)


def to_bfloat16(folder: Path):
    convert(
        folder / "theirs",
        folder / "bfloat16",
        folder / "tokenizer",
        folder / "vae",
        dtype=torch.bfloat16,
        max_shard_size=SHARD,
    )


def load(folder: Path, repository: str = "ours"):
    return AutoModelForCausalLM.from_pretrained(
        folder / repository, dtype=torch.bfloat16, trust_remote_code=True
    ).eval()


def load_bfloat16(folder: Path):
    # Mapped weights are in memory once they are used.
    assert all(parameter.abs().amax() >= 0 for parameter in load(folder, "bfloat16").parameters())


@torch.no_grad()
def read_a_text(folder: Path):
    model = load(folder, "bfloat16")
    start = time.perf_counter()
    logits = model(torch.arange(64)[None], logits_to_keep=1).logits
    print(json.dumps({"seconds": time.perf_counter() - start}))
    assert logits.isfinite().all()


def draw(folder: Path):
    pipe = DiffusionPipeline.from_pretrained(folder / "bfloat16", dtype=torch.bfloat16, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    latents = pipe("Rosetta", num_inference_steps=1, output_type="latent").images
    print(json.dumps({"seconds": time.perf_counter() - start}))
    assert latents.isfinite().all() and latents.shape == (1, 128, 16, 16)


# In order; what to remove afterwards; and what the row of the table is called.
STEPS: list[tuple[Callable, list[str], str]] = [
    (make, [], "make the authors' files"),
    (read, [], "plainly read them"),
    (copy, ["copy"], "plainly copy them"),
    (to_repository, [], "convert"),
    (to_authors_layout, ["reverted"], "revert"),
    (load, ["ours"], "load in bfloat16, from fp32 files"),
    (to_bfloat16, [], "convert to bfloat16"),
    (load_bfloat16, [], "load in bfloat16, from bfloat16 files, and touch every weight"),
    (read_a_text, [], "load and read a text of 64 tokens"),
    (draw, [], "load and take a denoising step, 256 x 256 with guidance"),
]


def measure(step: Callable, folder: Path) -> dict[str, float]:
    """Runs a step in a process of its own: its seconds, and its peak memory in GB."""
    forget(folder)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--directory", folder, "--step", step.__name__], stdout=subprocess.PIPE, text=True
    )
    anonymous = [0]
    watcher = threading.Thread(target=watch_anonymous, args=(process.pid, anonymous))
    watcher.start()
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    watcher.join()
    if status != 0:
        raise RuntimeError(f"The step '{step.__name__}' failed.")
    row = {
        "seconds": time.perf_counter() - start,
        "peak_gb": usage.ru_maxrss * 1024 / GB,
        "peak_anonymous_gb": max(anonymous) * 1024 / GB,
    }
    return {**row, "seconds_within": json.loads(printed)["seconds"]} if printed else row


def watch_anonymous(pid: int, kilobytes: list[int]):
    """Appends the anonymous memory of a process, again and again, until it ends."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        line = next((line for line in status.splitlines() if line.startswith("RssAnon")), None)
        if line is None:  # it has ended
            return
        kilobytes.append(int(line.split()[1]))
        time.sleep(0.02)


def forget(folder: Path):
    """Drops the files from the operating system's cache, so that each step reads from the disk."""
    for file in folder.rglob("*.safetensors"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmarks/full_size"))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/full_size.json"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        return globals()[arguments.step](arguments.directory)

    arguments.directory.mkdir(parents=True)  # not one that holds something
    rows = {}
    try:
        for step, finished, title in STEPS:
            rows[title] = measure(step, arguments.directory)
            if step is load_bfloat16:
                files = (arguments.directory / "bfloat16").glob("*.safetensors")
                rows[title]["weights_gb"] = sum(file.stat().st_size for file in files) / GB
            print(title, {name: round(figure, 2) for name, figure in rows[title].items()}, flush=True)
            for name in finished:
                shutil.rmtree(arguments.directory / name)
    finally:
        shutil.rmtree(arguments.directory)

    print("\n| step | seconds | peak GB | of it anonymous |\n| --- | --- | --- | --- |")
    for title, row in rows.items():
        seconds = f"{row['seconds']:.1f}" + (f" ({row['seconds_within']:.1f})" if "seconds_within" in row else "")
        print(f"| {title} | {seconds} | {row['peak_gb']:.2f} | {row['peak_anonymous_gb']:.2f} |")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
