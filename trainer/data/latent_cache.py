"""Latents that are computed once: parquet files of captions and the latents of their images."""

import hashlib
import io
import json
import random
from collections import Counter
from pathlib import Path

import safetensors.torch
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from PIL import Image

from modeling_rosetta import encode_images

from .bad_records import BadRecord, SkippedRecords, unusable_records
from .records import captioned_image, source_images
from .source import DataSource


RECORDS_PER_FILE = 1000
DESCRIPTION = ".latents.json"
FEATURES = Features({"caption": Value("string"), "latents": Value("binary"), "source_images": List(Value("binary"))})


def write_latent_cache(
    source: DataSource,
    processor,
    vae,
    folder: str | Path,
    batch_size: int = 16,
    max_skipped_share: float = 0.01,
    process: int = 0,
    num_processes: int = 1,
) -> Counter:
    """
    Encodes the images of a source, and those they are drawn from, and writes parquet files that a [`DataSource`] of
    the task `"t2i"` reads in its place. It goes on after the last file that is complete, so that it can be interrupted
    and started again. Beside each lies a hidden list of the records that were skipped for it.

    Args:
        source (`DataSource`): of the task `"t2i"`.
        processor (`RosettaProcessor`): resizes images to their buckets.
        vae (`AutoencoderKLFlux2`): on the device that is to encode. Latents are stored in fp32.
        folder (`str` or `Path`)
        batch_size (`int`): most images that are encoded at a time.
        max_skipped_share (`float`): the share of records that cannot be encoded above which it stops.
        process, num_processes (`int`): which part of the records this process encodes.

    Returns:
        `Counter`: numbers of records that were written (`"written"`) and skipped, by reason, in this call.

    Raises:
        ValueError: before anything is written, if the folder holds latents of another VAE, size or part.
        RuntimeError: if too many records were skipped.
    """
    folder = Path(folder)
    _describe(folder, source, processor, vae, process, num_processes)
    records = source.open()
    if isinstance(records, IterableDataset) and records.num_shards < num_processes:
        raise ValueError(
            f"`num_processes` must be at most the number of files of a stream, {records.num_shards}, got "
            f"{num_processes}."
        )
    counts, skipped = Counter(), SkippedRecords(str(source), max_skipped_share)
    for number, columns in enumerate(records.shard(num_processes, process).iter(RECORDS_PER_FILE)):
        file = folder / f"latents-{process:03}-{number:06}.parquet"
        if file.exists():
            continue
        block = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        triples, bad = [], []
        for i, record in enumerate(block, start=number * RECORDS_PER_FILE):
            try:
                with unusable_records():
                    parsed = source.parse(record)
                    caption, image = captioned_image(parsed, source, processor, random.Random(i))
                    triples.append((caption, image, source_images(parsed, source)))
                skipped.add(None)
            except BadRecord as error:
                error.place = source.place(record, f"record {i} of part {process} of {num_processes}")
                skipped.add(error)
                bad.append(f"{json.dumps(error.entry(source))}\n")
                counts[error.reason] += 1
        images = [one for _, image, sources in triples for one in (image, *sources)]
        latents = iter(_encode(vae, [processor.preprocess_vae_image(image) for image in images], batch_size))
        stored = [
            safetensors.torch.save(
                {"latents": next(latents), **{f"source_{i}": next(latents) for i in range(len(sources))}}
            )
            for *_, sources in triples
        ]
        staged = file.with_name(f".{file.name}.saving")
        part = {
            "caption": [caption for caption, *_ in triples],
            "latents": stored,
            "source_images": [[_png(image) for image in sources] for *_, sources in triples],
        }
        Dataset.from_dict(part, features=FEATURES).to_parquet(staged)
        file.with_name(f".{file.stem}.skipped.jsonl").write_text("".join(bad))
        staged.rename(file)
        counts["written"] += len(triples)
    return counts


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _encode(vae, images: list[torch.Tensor], batch_size: int) -> list[torch.Tensor]:
    """Latents (C, h, w) of images (3, H, W) in [-1, 1], those of one size together."""
    latents: list[torch.Tensor | None] = [None] * len(images)
    for size in dict.fromkeys(image.shape for image in images):
        members = [i for i, image in enumerate(images) if image.shape == size]
        for start in range(0, len(members), batch_size):
            some = members[start : start + batch_size]
            encoded = encode_images(vae, torch.stack([images[i] for i in some]).to(vae.device))
            for i, one in zip(some, encoded.cpu(), strict=True):
                latents[i] = one.contiguous()
    return latents


def _describe(folder: Path, source: DataSource, processor, vae, process: int, num_processes: int):
    """Writes what the latents of a folder are made of and with, or checks that it is the same."""
    weights = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    description = {
        "source": str(source),
        "vae": weights.hexdigest(),
        "base_size": processor.base_size,
        "latent_patch_size": processor.latent_patch_size,
        "num_processes": num_processes,
    }
    file = folder / DESCRIPTION
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        staged = file.with_name(f"{DESCRIPTION}.{process}")
        staged.write_text(json.dumps(description))
        staged.replace(file)
    for name, there in json.loads(file.read_text()).items():
        if there != description[name]:
            raise ValueError(
                f"`folder`: {folder} holds latents with {name} = {there!r}, but now it is {description[name]!r}."
            )


__all__ = ["write_latent_cache"]
