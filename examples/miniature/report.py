"""What the miniature shows at its end: a table, a picture of drawn digits and the training curves."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def results_table(results: dict[str, dict[str, str]]) -> str:
    """
    A markdown table of figures after each stage; a figure that a stage does not have is a dash.

    Args:
        results: for each stage its figures by name, formatted.
    """
    columns = list(dict.fromkeys(name for figures in results.values() for name in figures))
    cells = [["after", *columns]]
    cells += [[stage, *(figures.get(name, "-") for name in columns)] for stage, figures in results.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def save_drawn_digits(drawn: dict[str, list[Image.Image]], path: str | Path):
    """A picture of the images drawn for each prompt, one prompt a row in two columns."""
    figure, axes = plt.subplots((len(drawn) + 1) // 2, 2, figsize=(10, 0.5 * len(drawn)), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (prompt, images) in zip(axes.T.flat, drawn.items(), strict=False):
        axis.imshow(np.concatenate([np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0))) for image in images], axis=1))
        axis.set_title(f"“{prompt}”", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_training_curves(histories: dict[str, list[dict]], names: list[str], path: str | Path):
    """
    A panel for each logged quantity, over the steps of all stages one after the other, each in a colour of its own.

    Args:
        histories: for each stage, in order, the `log_history` of its Trainer.
        names: the keys to draw; a stage that did not log one leaves a gap.
    """
    size = (9, 2.4 * len(names) + 0.6)
    figure, axes = plt.subplots(len(names), figsize=size, sharex=True, squeeze=False, layout="constrained")
    start = 0
    for number, (stage, history) in enumerate(histories.items()):
        for axis, name in zip(axes.flat, names, strict=True):
            points = [(start + log["step"], log[name]) for log in history if name in log]
            axis.plot(*np.array(points).reshape(-1, 2).T, marker=".", color=f"C{number}", label=stage)
            axis.axvline(start, color="lightgray", zorder=0)
            axis.set_ylabel(name)
        start += max((log["step"] for log in history), default=0)
    axes[-1, 0].set_xlabel("step")
    # Beside the curves a short stage has no room for its name.
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)
