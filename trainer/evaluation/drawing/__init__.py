"""Drawing: a set of prompts becomes a folder of images, and a folder of images becomes scores."""

from .draw import draw_prompts
from .drawings import Drawings
from .prompts import read_prompts


__all__ = ["Drawings", "draw_prompts", "read_prompts"]
