"""A page that shows what a stream makes of its records: samples as the model gets them, and how they fill rows."""

import base64
import io
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..html_page import COLOURS, page_template
from .inspection import NUM_EXAMPLES, StreamReport


TEMPLATE = page_template(
    """h2 { border-left: .6em solid; padding-left: .5em; margin-top: 2.2em; }
.sample { border: 1px solid #ddd; border-radius: 6px; padding: .6em .8em; margin: .6em 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.7 ui-monospace, monospace; max-height: 22em; overflow-y: auto; }
.target { background: #d7efd3; } .mark { color: #999; }
img { height: 96px; image-rendering: pixelated; vertical-align: middle; border: 1px solid #ccc; margin: 2px; }
.row { display: flex; height: 13px; margin: 2px 0; background: #f1f1f1; } .row span { border-right: 1px solid #fff; }
""",
    """<p>{{ report.rows|length }} rows of {{ "{:,}".format(report.max_length) }} tokens are
{{ "{:.1%}".format(report.fill) }} full.
{% if report.stopped %}<b>A run would stop:</b> {{ report.stopped }}{% endif %}</p>
<table>
<tr><th>source<th>weight<th>of samples<th>of tokens
<th>records<th>skipped<th>samples<th>tokens<th>targets<th>images</tr>
{% for source in sources %}
<tr><td><b style="color: {{ source.colour }}">&#9632;</b> {{ source.report.source }}
<td>{{ "{:g}".format(source.report.source.weight) }}
<td>{{ "{:.1%}".format(source.shares[0]) }}<td>{{ "{:.1%}".format(source.shares[1]) }}
{% for number in source.numbers %}<td>{{ "{:,}".format(number) }}{% endfor %}</tr>
{% endfor %}
</table>
<h2>How rows are filled</h2>
{% for row in rows %}
<div class="row">{% for sample in row %}<span title="{{ sample.title }}"
style="width: {{ sample.width }}%; background: {{ sample.colour }}"></span>{% endfor %}</div>
{% endfor %}
{% for source in sources %}
<h2 style="border-color: {{ source.colour }}">{{ source.report.source }}</h2>
{% if source.skipped %}
<table>
{% for reason, number, entries in source.skipped %}
<tr><td>{{ number }}<td><b>{{ reason }}</b><td>
{% for entry in entries %}{{ entry.place }}: {{ entry.detail }}<br>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% for sample in source.samples %}
<div class="sample">{% for part in sample %}{% if part.image %}<img src="{{ part.image }}" alt="{{ part.text }}"
title="{{ part.text }}">{% else %}<span class="{{ part.kind }}">{{ part.text }}</span>{% endif %}{% endfor %}</div>
{% endfor %}
{% endfor %}
<p><span class="target">Green</span> is to be predicted. Pictures are as the model gets them.</p>
""",
)


def write_page(report: StreamReport, processor, file: str | os.PathLike, title: str = "Data"):
    """
    Writes a page of HTML that needs nothing beside it.

    Args:
        report ([`StreamReport`])
        processor (`RosettaProcessor`): that made its samples.
        file (`str` or `os.PathLike`)
        title (`str`, defaults to `"Data"`)
    """
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(report.sources))]
    sources = []
    for colour, one, shares in zip(colours, report.sources, report.shares(), strict=True):
        numbers = (one.num_records, len(one.skipped), one.num_samples, one.tokens.total(), one.num_targets)
        entries = sorted(one.skipped, key=lambda entry: entry["reason"])
        skipped = [(reason, [*group]) for reason, group in groupby(entries, key=lambda entry: entry["reason"])]
        sources.append(
            {
                "report": one,
                "colour": colour,
                "shares": shares,
                "numbers": (*numbers, one.num_images),
                "skipped": [(reason, len(group), group[:NUM_EXAMPLES]) for reason, group in skipped],
                "samples": [[*_parts(sample, processor)] for sample in one.examples],
            }
        )
    rows = [
        [
            {
                "title": f"{report.sources[index].source}, {len(sample['input_ids'])} tokens",
                "width": 100 * len(sample["input_ids"]) / report.max_length,
                "colour": colours[index],
            }
            for index, sample in zip(row.sources, row.samples, strict=True)
        ]
        for row in report.rows
    ]
    Path(file).write_text(TEMPLATE.render(title=title, report=report, sources=sources, rows=rows), encoding="utf-8")


def _parts(sample: dict[str, torch.Tensor], processor) -> Iterator[dict]:
    """Runs of text that are or are not to be predicted, and images."""
    pictures = {"pixel_values": _seen(sample, processor), "noisy_latents": _drawn(sample)}
    ids, types = sample["input_ids"].tolist(), sample["token_type_ids"].tolist()
    targets = (sample["labels"] != -100).tolist()
    targets[0] = False
    marks = {*processor.tokenizer.all_special_ids, *processor.tokenizer.added_tokens_decoder}
    runs = groupby(range(len(ids)), key=lambda i: (types[i], targets[i], not targets[i] and ids[i] in marks))
    for (token_type, is_target, is_mark), run in runs:
        positions = [*run]
        source = processor.embeds_from[token_type]
        if source == "input_ids":
            kind = "target" if is_target else "mark" if is_mark else ""
            yield {"kind": kind, "text": processor.tokenizer.decode([ids[i] for i in positions])}
        else:
            # Images of one kind always have marks between them.
            name = f"{len(positions)} tokens from {source}"
            image = next(pictures.get(source, iter(())), None)
            yield {"kind": "mark", "text": f"[{name}]", "image": image}


def _seen(sample: dict[str, torch.Tensor], processor) -> Iterator[str]:
    """The images to understand, put together again from their patches."""
    images = processor.image_processor
    start = 0
    for frames, height, width in sample.get("image_grid_thw", torch.empty(0, 3)).tolist():
        patches = sample["pixel_values"][start : start + frames * height * width]
        start += len(patches)
        merge, patch = images.merge_size, images.patch_size
        grid = patches.reshape(frames, height // merge, width // merge, merge, merge, 3, -1, patch, patch)[0]
        pixels = grid[..., 0, :, :].permute(0, 2, 5, 1, 3, 6, 4).reshape(height * patch, width * patch, 3)
        mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
        yield _url((pixels * std + mean).clamp(0, 1).mul(255).round())


def _drawn(sample: dict[str, torch.Tensor]) -> Iterator[str | None]:
    """The images to draw, unless there are their latents only."""
    grids = sample.get("latent_grid_hw", torch.empty(0, 2)).tolist()
    if "latent_pixels" not in sample:
        return
    pixels = sample["latent_pixels"]
    side = int((len(pixels) / max(1, sum(height * width for height, width in grids))) ** 0.5)
    for height, width in grids:
        image, pixels = pixels[: height * width * side**2], pixels[height * width * side**2 :]
        yield _url(image.reshape(height * side, width * side, 3))


def _url(pixels: torch.Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy().astype(np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


__all__ = ["write_page"]
