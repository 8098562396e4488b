"""Draws prompts into a folder, in batches, on all ranks."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from ..ranks import gathered, rank_and_size
from .drawings import Drawings, read_drawing, save_image


LIBRARIES = ("torch", "transformers", "diffusers", "accelerate")
NUM_VALUES = 16  # of each end of each weight, that a model is told by


def draw_prompts(
    pipe,
    prompts: list[dict],
    folder: str | Path,
    model: str,
    num_images_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    noise_device: str = "cpu",
    settings: dict | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Drawings:
    """
    Draws each prompt from noise of a seed of its own. All ranks call it and share the batches. A batch holds the same
    prompts whatever the number of ranks and however often the run was killed, so neither changes a drawing; another
    batch size changes it by the rounding of batched sums only.

    Args:
        pipe ([`RosettaPipeline`])
        prompts (`list[dict]`): from [`read_prompts`].
        folder (`str` or `Path`): gets `00000_0.png`, prompt 0's first, ... and `manifest.json`. Those that are there
            are kept.
        model (`str`): its name, for the manifest.
        num_images_per_prompt (`int`, defaults to 1)
        seed (`int`, defaults to 0): of the first drawing; the next has the next. A prompt's own seed takes precedence,
            and its n-th drawing has the n-th after it.
        batch_size (`int`, defaults to 8): drawings at a time, on each rank.
        noise_device (`str`, defaults to `"cpu"`): where noise is drawn. The same seed gives other noise on `"cuda"`,
            where the authors' code draws it.
        settings (`dict`, *optional*): other arguments of the pipeline, such as `num_inference_steps`.
        say (`Callable`, *optional*): is told of progress, a line a time.

    Raises:
        ValueError: before anything is drawn, if an argument is not valid, the model does not draw, or the folder holds
            other drawings or broken ones.
    """
    counts = {"num_images_per_prompt": num_images_per_prompt, "batch_size": batch_size}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    check_draws(pipe)
    if noise_device not in ("cpu", pipe.device.type):
        raise ValueError(f"`noise_device` must be 'cpu' or the model's, '{pipe.device.type}', got {noise_device!r}.")
    images = []
    for index, prompt in enumerate(prompts):
        first = prompt.get("seed", seed + index * num_images_per_prompt)
        for number in range(num_images_per_prompt):
            images.append({"file": f"{index:05}_{number}.png", **prompt, "seed": first + number})
    drawings = Drawings(
        Path(folder),
        {
            "model": {"name": model, "weights": fingerprint(pipe)},
            "settings": {"noise_device": noise_device, **(settings or {})},
            "versions": {name: version(name) for name in LIBRARIES},
            "images": images,
        },
    )
    drawings.check_folder()
    rank, size = rank_and_size()
    for file in drawings.files[rank::size]:
        if file.exists():
            read_drawing(file)
    pipe.set_progress_bar_config(disable=True)
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    own = batches[rank::size]
    for number, batch in enumerate(own, 1):
        files = [drawings.folder / image["file"] for image in batch]
        if all(file.exists() for file in files):
            continue
        generators = [torch.Generator(noise_device).manual_seed(image["seed"]) for image in batch]
        drawn = pipe([image["prompt"] for image in batch], generator=generators, **(settings or {})).images
        drawings.save_manifest()  # not before the pipeline has taken the settings
        for image, file in zip(drawn, files, strict=True):
            if not file.exists():
                save_image(image, file)
        say(f"Rank {rank}: {number} of {len(own)} batches are drawn.")
    gathered({})  # none goes on before all are done
    return drawings


def check_draws(pipe):
    """
    Raises:
        ValueError: if a pipeline lacks what it needs to draw.
    """
    if pipe.transformer is None or pipe.transformer.config.token_type_index("noisy_latents") is None:
        types = [] if pipe.transformer is None else [t["name"] for t in pipe.transformer.config.token_types]
        raise ValueError(f"The model does not draw: none of its token types {types} is made of latents.")
    if lacking := [name for name in ("vae", "scheduler") if getattr(pipe, name) is None]:
        raise ValueError(f"The model does not draw: its repository has no {' and no '.join(lacking)}.")


def fingerprint(pipe) -> str:
    """Tells models apart by the ends of each weight and the scheduler's settings."""
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(pipe.scheduler).__name__, scheduler], default=str).encode())
    for part in (pipe.transformer, pipe.vae):
        for name, tensor in sorted(part.state_dict().items()):
            values = tensor.detach().flatten()
            ends = torch.cat([values[:NUM_VALUES], values[-NUM_VALUES:]]).cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(ends.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["check_draws", "draw_prompts", "fingerprint"]
