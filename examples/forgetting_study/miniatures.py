"""The data the study is made on: digits, or emoji."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.emoji.parts import make_parts as make_emoji_parts
from examples.miniature.parts import CommonParts, make_parts


@dataclass(frozen=True)
class Miniature:
    """
    Args:
        make_parts: from a seed, the [`CommonParts`], which have `tasks`, `held_out_drawings` and `skills` too.
        steps (`dict[str, int]`): of each stage.
        output_dir (`Path`): unless another is asked for.
    """

    make_parts: Callable[[int], CommonParts]
    steps: dict[str, int]
    output_dir: Path


MINIATURES = {
    "digits": Miniature(
        make_parts, {"LM": 60, "projectors": 60, "MMU": 500, "T2I": 600}, Path("outputs/forgetting_study")
    ),
    "emoji": Miniature(
        make_emoji_parts, {"LM": 300, "projectors": 300, "MMU": 4000, "T2I": 2000}, Path("outputs/emoji_study")
    ),
}
