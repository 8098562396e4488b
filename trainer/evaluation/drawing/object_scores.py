"""
Whether a detector finds in a drawing what its prompt asks for, in the manner of GenEval (Ghosh et al. 2023).

The records and the rules are GenEval's, the networks are not: it finds objects with mmdet's Mask2Former and looks at
the colour within their masks, here a detector of transformers gives boxes. The figures do not compare with published
ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from .clip_scores import Clip
from .drawings import read_drawing


THRESHOLD = 0.3  # of the confidence in an object,
COUNTING_THRESHOLD = 0.9  # and where prompts ask for a number
MAX_OBJECTS = 16  # of a class
POSITION_THRESHOLD = 0.1  # of the sizes of two objects, by which they must lie apart
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
# GenEval's names of COCO's classes.
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Detector:
    """A model of transformers that finds objects, with what prepares images for it."""

    model: Any
    image_processor: Any

    @classmethod
    def from_pretrained(cls, repo: str | Path, device: str | torch.device = "cpu") -> "Detector":
        """
        Args:
            repo (`str` or `Path`): folder or Hub id of a model of COCO's classes, such as `PekingU/rtdetr_r101vd`.
            device (`str` or `torch.device`, defaults to `"cpu"`)

        Raises:
            ValueError: if it cannot be loaded.
        """
        try:
            model = AutoModelForObjectDetection.from_pretrained(repo, dtype=torch.float32)
            return cls(model.to(device).eval(), AutoImageProcessor.from_pretrained(repo, backend="pil"))
        except (ImportError, OSError, ValueError) as error:
            raise ValueError(f"The detector '{repo}' cannot be loaded: {error}") from error

    @property
    def names(self) -> set[str]:
        return {*self.model.config.id2label.values()}

    @torch.no_grad()
    def objects(self, image, threshold: float) -> dict[str, list[Box]]:
        """Of each class that is seen the boxes, the surest first, at most 16."""
        image = read_drawing(image)
        inputs = self.image_processor(image, return_tensors="pt").to(self.model.device)
        found = self.image_processor.post_process_object_detection(
            self.model(**inputs), threshold=threshold, target_sizes=[(image.height, image.width)]
        )[0]
        boxes: dict[str, list[Box]] = {}
        for i in found["scores"].argsort(descending=True, stable=True).tolist():
            own = boxes.setdefault(self.model.config.id2label[int(found["labels"][i])], [])
            if len(own) < MAX_OBJECTS:
                own.append(tuple(found["boxes"][i].tolist()))
        return boxes


def object_scores(images: Sequence, records: list[dict], detector: Detector, clip: Clip) -> list[dict]:
    """
    Args:
        images (`Sequence`): images or their files.
        records (`list[dict]`): GenEval's of each image: `tag`, and `include` and `exclude`, lists of a `class`, a
            `count`, maybe a `color`, and maybe a `position` such as `["left of", 0]`, from the objects of the entry
            number 0.
        detector ([`Detector`])
        clip ([`Clip`]): tells colours; GenEval's is `openai/clip-vit-large-patch14`.

    Returns:
        `list[dict]`: of each image `right`, 1 or 0, and the `reason` if 0.

    Raises:
        ValueError: before any work, if a record asks for what the detector or GenEval does not know.
    """
    for record in records:
        check_record(record, detector)
    return [_judged(*pair, detector, clip) for pair in zip(images, records, strict=True)]


def check_record(record: dict, detector: Detector):
    """
    Raises:
        ValueError: if a record asks for what the detector or GenEval does not know.
    """
    where, wanted = f"The prompt {record.get('prompt')!r}", [*record.get("include", []), *record.get("exclude", [])]
    if not wanted:
        raise ValueError(f"{where} needs `include` or `exclude`, lists of objects.")
    for one in wanted:
        if _name(one.get("class"), detector) is None:
            raise ValueError(f"{where}: the detector does not know the class {one.get('class')!r}.")
        if not isinstance(one.get("count"), int) or one["count"] < 1:
            raise ValueError(f"{where}: `count` must be a positive integer, got {one.get('count')!r}.")
        if one.get("color", COLORS[0]) not in COLORS:
            raise ValueError(f"{where}: `color` must be among {COLORS}, got {one['color']!r}.")


def _name(name: str, detector: Detector) -> str | None:
    return next((known for known in (name, COCO_NAMES.get(name)) if known in detector.names), None)


def _judged(image, record: dict, detector: Detector, clip: Clip) -> dict:
    """Of several failures the first is the reason. Colours and places are asked of the surest boxes."""
    image = read_drawing(image)
    objects = detector.objects(image, COUNTING_THRESHOLD if record.get("tag") == "counting" else THRESHOLD)
    reasons: list[str] = []
    groups: list[list[Box] | None] = []
    for wanted in record.get("include", []):
        found = objects.get(_name(wanted["class"], detector), [])[: wanted["count"]]
        reason = _lacking(image, wanted, found, groups, clip)
        reasons += [reason] if reason else []
        groups.append(None if reason else found)
    for unwanted in record.get("exclude", []):
        number = len(objects.get(_name(unwanted["class"], detector), []))
        if number >= unwanted["count"]:
            reasons.append(f"expected fewer than {unwanted['count']} of {unwanted['class']}, found {number}")
    return {"right": 0, "reason": reasons[0]} if reasons else {"right": 1}


def _lacking(image: Image.Image, wanted: dict, found: list[Box], groups: list, clip: Clip) -> str | None:
    name, count = wanted["class"], wanted["count"]
    if len(found) < count:
        return f"expected {count} of {name}, found {len(found)}"
    if "color" in wanted:
        colors = colors_of(image, found, name, clip)
        if colors.count(wanted["color"]) < count:
            return f"expected {count} of {name} in {wanted['color']}, found {', '.join(colors)}"
    if "position" in wanted:
        relation, other = wanted["position"]
        if groups[other] is None:
            return f"there is nothing for {name} to be {relation}"
        if not all(relation in relations(box, target) for box in found for target in groups[other]):
            return f"expected {name} {relation} the other"
    return None


def colors_of(image: Image.Image, boxes: list[Box], name: str, clip: Clip) -> list[str]:
    """Which of ten colours what is in each box has, the likeliest to CLIP."""
    texts = [prompt.format(color=color, name=name) for color in COLORS for prompt in COLOR_PROMPTS]
    means = clip.embed_texts(texts).unflatten(0, (len(COLORS), -1)).mean(dim=1)
    crops = [image.crop(_within(box, image)) for box in boxes]
    likeliest = (clip.embed_images(crops) @ torch.nn.functional.normalize(means, dim=-1).T).argmax(dim=1)
    return [COLORS[i] for i in likeliest.tolist()]


def relations(box: Box, target: Box) -> set[str]:
    """Where a box is from another's view: of "left of", "right of", "above", "below", none to two."""
    ours, others = (np.array(each).reshape(2, 2) for each in (box, target))
    offset = ours.mean(axis=0) - others.mean(axis=0)
    sizes = np.abs(ours[1] - ours[0]) + np.abs(others[1] - others[0])
    apart = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) * np.sign(offset)
    if (np.abs(apart) < 1e-3).all():
        return set()
    x, y = apart / np.linalg.norm(offset)
    where = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, holds in where.items() if holds}


def _within(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    """The pixels of a box that are in the image, one at least."""
    left, right = np.clip([int(box[0]), round(box[2])], 0, image.width).tolist()
    top, bottom = np.clip([int(box[1]), round(box[3])], 0, image.height).tolist()
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


__all__ = ["COLORS", "Detector", "check_record", "colors_of", "object_scores", "relations"]
