"""A page of a run: what it is, its curves, and what it drew and answered on the way."""

import os
from pathlib import Path

from ..html_page import COLOURS, page_template
from .samples_in_training import read_samples


FILE_NAME = "run.html"
MAX_POINTS = 400  # of a curve
WIDTH, HEIGHT = 320, 130
# Curves that belong in one picture: what it is called, and which figures they are.
PICTURES = {
    "losses in training": lambda name: name.endswith("_loss") and not name.startswith(("eval_", "train_")),
    "capacity rate": lambda name: name.startswith("capacity_rate_"),
    "load of an expert": lambda name: name.startswith("expert_load_"),
    "idle experts": lambda name: name.startswith("experts_idle_"),
    "entropy of the routers": lambda name: name.startswith("router_entropy_"),
    "MAOP": lambda name: name.startswith("maop_"),
    "norm of the gradient": lambda name: name == "grad_norm",
    "learning rate": lambda name: name.startswith("learning_rate_"),
    "tokens a second": lambda name: name == "tokens_per_second",
    "skipped records": lambda name: name.startswith("skipped_"),
}
TEMPLATE = page_template(
    """.pictures { display: flex; flex-wrap: wrap; gap: 1.4em 2em; } figure { margin: 0; width: 330px; }
svg { width: 330px; background: #fafafa; } figcaption { font-weight: 600; } small { display: block; color: #555; }
img { width: 96px; image-rendering: pixelated; } .scroll { overflow-x: auto; }
""",
    """<p>{% for line in header %}{{ line }}<br>{% endfor %}</p>
<div class="pictures">
{% for picture in pictures %}
<figure><figcaption>{{ picture.name }}</figcaption>
<svg viewBox="0 0 {{ width }} {{ height }}">
<text x="2" y="11" font-size="10" fill="#555">{{ picture.highest }}</text>
<text x="2" y="{{ height - 3 }}" font-size="10" fill="#555">{{ picture.lowest }}</text>
<text x="{{ width - 2 }}" y="{{ height - 3 }}" font-size="10" text-anchor="end" fill="#555">step
{{ picture.last }}</text>
{% for curve in picture.curves %}
<polyline fill="none" stroke="{{ curve.colour }}" stroke-width="1.5" points="{{ curve.points }}"/>
<circle r="2.5" fill="{{ curve.colour }}" cx="{{ curve.end[0] }}" cy="{{ curve.end[1] }}"/>
{% endfor %}
</svg>
{% for curve in picture.curves %}<small><b style="color: {{ curve.colour }}">&#9632;</b> {{ curve.name }}
{{ curve.now }}</small>{% endfor %}
</figure>
{% endfor %}
</div>
{% if samples %}
<h2>Drawn and answered on the way</h2>
<div class="scroll"><table>
<tr><th>{% for sample in samples %}<th>step {{ sample.step }}{% endfor %}</tr>
{% for prompt in samples[-1].prompts %}{% set number = loop.index0 %}
<tr><td>{{ prompt }}{% for sample in samples %}
<td>{% if number < sample.images|length %}<img src="{{ sample.images[number] }}" alt="{{ prompt }}">{% endif %}
{% endfor %}</tr>
{% endfor %}
{% for question in samples[-1].questions %}{% set number = loop.index0 %}
<tr><td>{{ question.question }}{% if question.image %}<br><small>{{ question.image }}</small>{% endif %}
{% for sample in samples %}
<td>{{ sample.answers[number] }}{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
""",
)


def write_run_page(output_dir: str | os.PathLike, title: str, header: list[str], history: list[dict]):
    """
    Writes `output_dir/run.html`.

    Args:
        output_dir (`str` or `os.PathLike`): of the run, with its samples.
        title (`str`)
        header (`list[str]`): lines of what the run is.
        history (`list[dict]`): the Trainer's `log_history`.
    """
    names = sorted({name for log in history for name in log})
    wanted = {title: [name for name in names if belongs(name)] for title, belongs in PICTURES.items()}
    # One for each source and kind: what the method promises is that those of old skills stay.
    held_out = [name for name in names if name.startswith("eval_") and name.endswith(("text_loss", "flow_loss"))]
    wanted |= {f"held out: {name[5:].replace('_', ' ')}": [name] for name in held_out}
    pictures = []
    for name_of_picture, members in wanted.items():
        curves = {name: points for name in members if (points := _points(history, name))}
        if curves:
            pictures.append({"name": name_of_picture, **_picture(curves)})
    page = TEMPLATE.render(
        title=title, header=header, pictures=pictures, samples=read_samples(output_dir), width=WIDTH, height=HEIGHT
    )
    file = Path(output_dir, FILE_NAME)
    staged = file.with_name(f".{FILE_NAME}.saving")
    staged.write_text(page, encoding="utf-8")
    staged.replace(file)


def _points(history: list[dict], name: str) -> list[tuple[int, float]]:
    points = [(log["step"], log[name]) for log in history if isinstance(log.get(name), int | float)]
    points = [(step, figure) for step, figure in points if abs(figure) < float("inf")]  # nor NaN
    stride = -(-len(points) // MAX_POINTS) or 1
    return points[::-1][::stride][::-1]


def _picture(curves: dict[str, list[tuple[int, float]]]) -> dict:
    figures = [figure for points in curves.values() for _, figure in points]
    lowest, highest = min(figures), max(figures)
    last = max(points[-1][0] for points in curves.values())
    scale = (HEIGHT - 30) / (highest - lowest or 1)

    def place(step: int, figure: float) -> str:
        return f"{step / max(1, last) * WIDTH:.1f},{HEIGHT - 15 - (figure - lowest) * scale:.1f}"

    return {
        "lowest": f"{lowest:.4g}",
        "highest": f"{highest:.4g}",
        "last": f"{last:,}",
        "curves": [
            {
                "name": name,
                "colour": COLOURS[i % len(COLOURS)],
                "now": f"{points[-1][1]:.4g}",
                "points": " ".join(place(*point) for point in points),
                "end": place(*points[-1]).split(","),
            }
            for i, (name, points) in enumerate(curves.items())
        ],
    }


__all__ = ["write_run_page"]
