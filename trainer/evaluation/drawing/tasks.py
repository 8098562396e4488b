"""What models are asked to draw, and how that is scored: the drawing half of Table 1, and prompts of one's own."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .blip_vqa import blip_vqa_scores, questions_of
from .clip_scores import clip_scores
from .frechet import Inception, Statistics, read_statistics, reference_images
from .judges import Judges
from .object_scores import check_record, object_scores
from .prompts import read_prompts


AUTHORS, STOCK, OWN = "authors", "stock", "own"
COMPBENCH_CATEGORIES = ("color", "shape", "texture")
COMPBENCH_IMAGES = 10  # of a prompt in the benchmark's own protocol; the authors draw one
COCO_PROMPTS = 30_000
DRAWING_TASKS = ("coco", *(f"t2i_compbench_{category}" for category in COMPBENCH_CATEGORIES))
# Of files of drawings and the records of their prompts an outcome each.
Score = Callable[[list[Path], list[dict]], list[dict]]


@dataclass(frozen=True)
class DrawingTask:
    """
    Args:
        name (`str`)
        protocol (`str`)
        prompts (`list[dict]`): from [`read_prompts`].
        scores (`list[Callable]`): each makes of files and records of drawings an outcome each; those of all are put
            together.
        metrics (`Callable`): of all outcomes the figures by name.
        inception ([`Inception`], *optional*): for the Frechet distance, with
        reference (`list[Path]`, or a mean and a covariance, *optional*): to what it is.
        num_images_per_prompt (`int`, defaults to 1)
        settings (`dict`): of the pipeline.
        noise_device (`str`, defaults to `"cpu"`)
        dataset (`tuple[str, str]`, *optional*): id on the Hub, and the name of the task there.
        remarks (`tuple[str]`): what of its figures cannot be compared, and why.
    """

    name: str
    protocol: str
    prompts: list[dict]
    scores: list[Score]
    metrics: Callable[[list[dict]], dict[str, float]]
    inception: Inception | None = None
    reference: list[Path] | Statistics | None = None
    num_images_per_prompt: int = 1
    settings: dict = field(default_factory=dict)
    noise_device: str = "cpu"
    dataset: tuple[str, str] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.name}--{self.protocol}"

    @property
    def num_samples(self) -> int:
        """How many drawings it has."""
        return len(self.prompts) * self.num_images_per_prompt


def coco(data: Path, judges: Judges, protocol: str = AUTHORS, reference: Path | None = None) -> DrawingTask:
    """
    FID, CLIPScore and HPS v2.1 on 30,000 captions of COCO, a drawing of 256 x 256 pixels each.

    Args:
        data (`Path`): its folder `coco` holds, for `"authors"`, their `COCO30k.json` and `coco_val_fid_stats.pt`; for
            `"stock"`, `captions_val2014.json`, of which 30,000 are chosen by chance, always the same.
        judges ([`Judges`]): without Inception there is no FID, without the weights of HPS no HPS.
        protocol (`str`, defaults to `"authors"`)
        reference (`Path`, *optional*): folder of images or file of statistics that FID is taken to; by default the
            authors' statistics, or the folder `val2014`.
    """
    folder = Path(data, "coco")
    if protocol == AUTHORS:
        prompts, resize = read_prompts(folder / "COCO30k.json"), "bilinear"
        default_reference, remarks = folder / "coco_val_fid_stats.pt", (*DRAWING_REMARKS, *COCO_REMARKS)
    else:
        prompts, resize = read_prompts(folder / "captions_val2014.json"), "clean"
        default_reference, remarks = folder / "val2014", (CLEAN,)
        if len(prompts) > COCO_PROMPTS:
            prompts = random.Random(0).sample(prompts, COCO_PROMPTS)
    scores, left_out = _fit_scores(judges)
    inception, reference, without = _frechet(judges, resize, reference or default_reference)
    return DrawingTask(
        "coco",
        protocol,
        prompts,
        scores,
        means,
        inception,
        reference,
        settings={"height": 256, "width": 256},
        noise_device=_noise_device(judges, protocol),
        remarks=(*remarks, *left_out, *without),
    )


def t2i_compbench(data: Path, judges: Judges, category: str, protocol: str = AUTHORS) -> DrawingTask:
    """
    BLIP-VQA on the 300 validation prompts of a category of T2I-CompBench.

    Args:
        data (`Path`): its folder `t2i_compbench` holds `color_val.csv`, `shape_val.csv` and `texture_val.csv` as the
            authors' repository has them, with `seed` and `questions`.
        judges ([`Judges`])
        category (`str`): `"color"`, `"shape"` or `"texture"`.
        protocol (`str`, defaults to `"authors"`): who draw one image a prompt, of the seed of its row; `"stock"` draws
            ten, as the benchmark does.
    """
    prompts = read_prompts(Path(data, "t2i_compbench", f"{category}_val.csv"))
    return DrawingTask(
        f"t2i_compbench_{category}",
        protocol,
        prompts,
        [_blip_vqa(judges, prompts)],
        means,
        num_images_per_prompt=1 if protocol == AUTHORS else COMPBENCH_IMAGES,
        settings={"height": 256, "width": 256} if protocol == AUTHORS else {},
        noise_device=_noise_device(judges, protocol),
        remarks=(*(DRAWING_REMARKS if protocol == AUTHORS else ()), COMPBENCH),
    )


def load(name: str, data: Path, judges: Judges, protocol: str, reference: Path | None = None) -> DrawingTask:
    """
    One of `DRAWING_TASKS`.

    Raises:
        ValueError: if its data is missing or of another format, or a judge cannot be loaded.
    """
    if name == "coco":
        return coco(data, judges, protocol, reference)
    return t2i_compbench(data, judges, name.removeprefix("t2i_compbench_"), protocol)


def own_prompts(file: Path, judges: Judges, reference: Path | None = None) -> DrawingTask:
    """
    CLIPScore on prompts of one's own; HPS v2.1 with its weights; FID with Inception and a reference; BLIP-VQA if all
    records have `questions`; and with a detector, if all have what GenEval's have, whether the objects are there.

    Args:
        file (`Path`): as [`read_prompts`] reads it.
        judges ([`Judges`])
        reference (`Path`, *optional*): folder of images or file of statistics that FID is taken to.
    """
    prompts, metrics, remarks = read_prompts(file), means, ()
    scores, left_out = _fit_scores(judges)
    if all("questions" in record for record in prompts):
        scores.append(_blip_vqa(judges, prompts))
    if judges.detector is not None:
        scores.append(_objects(judges, prompts))
        metrics, remarks = means_and_objects, (OBJECTS,)
    inception, images, without = None, None, ()
    if reference is not None:
        inception, images, without = _frechet(judges, "clean", reference)
        remarks += (CLEAN,)
    remarks += (*left_out, *without)
    return DrawingTask(Path(file).stem, OWN, prompts, scores, metrics, inception, images, remarks=remarks)


def means(outcomes: list[dict]) -> dict[str, float]:
    """Of each score."""
    names = [name for name, value in outcomes[0].items() if isinstance(value, float)]
    return {name: float(np.mean([outcome[name] for outcome in outcomes])) for name in names}


def means_and_objects(outcomes: list[dict]) -> dict[str, float]:
    """GenEval's figure, the mean of the shares of its kinds of prompts, those shares, and the means of the scores."""
    right: dict[str, list[int]] = {}
    for outcome in outcomes:
        right.setdefault(outcome["tag"], []).append(outcome["right"])
    shares = {f"objects_{tag}": float(np.mean(values)) for tag, values in sorted(right.items())}
    return {"objects": float(np.mean([*shares.values()])), **shares, **means(outcomes)}


def _fit_scores(judges: Judges) -> tuple[list[Score], tuple[str, ...]]:
    """CLIPScore and, with its weights, HPS; and what is to be said of what is left out."""
    of_prompts = judges.of_prompts
    scores = [lambda files, records: _cosines("clip_score", files, records, of_prompts)]
    if judges.hps is None:
        return scores, ("HPS v2.1 was left out, as its weights were not given.",)
    of_preference = judges.of_preference
    return [*scores, lambda files, records: _cosines("hps", files, records, of_preference)], ()


def _cosines(name: str, files: list[Path], records: list[dict], clip) -> list[dict]:
    return [{name: value} for value in clip_scores(files, [record["prompt"] for record in records], clip)]


def _blip_vqa(judges: Judges, prompts: list[dict]) -> Score:
    for record in prompts:
        questions_of(record)
    blip = judges.of_questions

    def score(files: list[Path], records: list[dict]) -> list[dict]:
        return [{"blip_vqa": value} for value in blip_vqa_scores(files, [*map(questions_of, records)], blip)]

    return score


def _objects(judges: Judges, prompts: list[dict]) -> Score:
    detector, colors = judges.of_objects, judges.of_colors
    for record in prompts:
        check_record(record, detector)

    def score(files: list[Path], records: list[dict]) -> list[dict]:
        outcomes = object_scores(files, records, detector, colors)
        return [
            {**outcome, "tag": record.get("tag", "all")} for outcome, record in zip(outcomes, records, strict=True)
        ]

    return score


def _frechet(judges: Judges, resize: str, reference: Path):
    """Inception, the reference, and what is to be said if FID is left out."""
    if judges.inception is None:
        return None, None, ("FID was left out, as Inception was not given.",)
    inception = judges.inception_of(resize)
    if Path(reference).suffix in (".npz", ".pt"):
        return inception, read_statistics(reference), ()
    return inception, reference_images(reference), ()


def _noise_device(judges: Judges, protocol: str) -> str:
    """The authors draw noise on the GPU, if there is one."""
    return torch.device(judges.device).type if protocol == AUTHORS else "cpu"


DRAWING_REMARKS = (
    "The steps and the guidance of the authors' figures are not public; the defaults of their code are 50 and 5.0.",
    "The authors draw noise on a GPU, and score images before they are rounded to bytes.",
)
COCO_REMARKS = (
    "Which images and which resizing the authors' FID statistics are of is not known.",
    "The call of the authors' HPS is not in any public version of its package; the formula is.",
)
CLEAN = "FID is with the resizing of clean-fid, and does not compare with FID by other resizing."
COMPBENCH = "Most prompts have two questions, some have one, so that one of two objects is not asked for."
OBJECTS = "Objects are found by another detector than GenEval's: the figures do not compare with published ones."


__all__ = [
    "DRAWING_TASKS",
    "DrawingTask",
    "coco",
    "load",
    "means",
    "means_and_objects",
    "own_prompts",
    "t2i_compbench",
]
