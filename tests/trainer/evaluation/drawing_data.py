"""What people have of COCO and of T2I-CompBench, a few samples each."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


CAPTIONS = ["a red book", "a blue mug", "a photo of a book", "red"]


def save_data(folder: Path):
    (folder / "coco" / "val2014").mkdir(parents=True)
    (folder / "t2i_compbench").mkdir()
    annotations = [{"id": i, "image_id": i, "caption": caption} for i, caption in enumerate(CAPTIONS)]
    (folder / "coco" / "captions_val2014.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    seeded = [{**annotation, "seed": 100 + i} for i, annotation in enumerate(annotations)]
    (folder / "coco" / "COCO30k.json").write_text(json.dumps({"annotations": seeded}))
    random = np.random.default_rng(0)
    for i in range(8):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "coco" / "val2014" / f"{i}.jpg")
    features = random.normal(size=(30, 5))
    torch.save((features.mean(0), np.cov(features, rowvar=False)), folder / "coco" / "coco_val_fid_stats.pt")
    columns = ("index", "seed", "prompt", "prompt_cn", "questions", "dataset", "dataset_type")
    with (folder / "t2i_compbench" / "color_val.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                columns,
                (0, 0, "a red book and a blue mug", "x", "a red book?##a blue mug?", "color", "val"),
                (1, 1, "a red mug", "x", "a red mug?", "color", "val"),
            ]
        )
