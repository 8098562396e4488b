"""Drawing: a set of prompts becomes a folder of images, and a folder of images becomes scores."""

from .blip_vqa import Blip, blip_vqa_scores, questions_of
from .clip_scores import Clip, clip_scores
from .draw import draw_prompts
from .drawings import Drawings
from .frechet import Inception, features_of, frechet_distance, read_statistics, reference_images
from .judges import Judges
from .object_scores import Detector, object_scores
from .prompts import read_prompts


__all__ = [
    "Blip",
    "Clip",
    "Detector",
    "Drawings",
    "Inception",
    "Judges",
    "blip_vqa_scores",
    "clip_scores",
    "draw_prompts",
    "features_of",
    "frechet_distance",
    "object_scores",
    "questions_of",
    "read_prompts",
    "read_statistics",
    "reference_images",
]
