"""
What came out of the study: a table of all arms, and figures with their numbers as JSON beside them.

    python examples/forgetting_study/report.py [--output_dir outputs/forgetting_study]

Reads `runs/*.json`, and writes `results.json`, `results.md` and the figures beside them. From a `results.json` alone,
`--results FILE`, it draws the figures again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib  # noqa: E402
import torch  # noqa: E402


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from examples.forgetting_study.routing import save_routing_map  # noqa: E402


FIGURES = ("text loss", "questions", "flow loss", "drawings")
SHOWN = ("name", "architecture", "regime", "learning_rate", "anchor_strength")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/forgetting_study"))
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.results is not None:
        results = json.loads(options.results.read_text())
    else:
        runs = [json.loads(file.read_text()) for file in sorted((options.output_dir / "runs").glob("*.json"))]
        if not runs:
            parser.error(f"--output_dir: there is no run in {options.output_dir / 'runs'}; study.py makes them")
        results = summary(runs)
        (options.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output_dir / "results.md").write_text(table(results) + "\n")
    draw_frontier(results, options.output_dir / "frontier.png")
    draw_routing(results, options.output_dir / "routing.png")
    print(table(results))


def summary(runs: list[dict]) -> list[dict]:
    """
    Of each arm, and each average of its weights with the old ones, its fields, the seeds, what each figure was after
    the stage and by how much it had changed, a number a seed, and the text routing of the first seed.
    """
    arms: dict[str, dict] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        outcomes = {"": run["after"], **{f", {share} new": after for share, after in run["averaged"].items()}}
        for suffix, after in outcomes.items():
            key = json.dumps([run["arm"], suffix])
            routing = {"before": run["before"]["routing"], "after": run["after"]["routing"]}
            arm = {**run["arm"], "name": run["arm"]["name"] + suffix}
            arm = arms.setdefault(key, {"arm": arm, "seeds": [], "after": {}, "change": {}, "routing": routing})
            arm["seeds"].append(run["seed"])
            for figure in FIGURES:
                arm["after"].setdefault(figure, []).append(after[figure])
                arm["change"].setdefault(figure, []).append(after[figure] - run["before"][figure])
            arm.setdefault("routing moved", []).append(run["after"]["routing moved"])
    return list(arms.values())


def table(results: list[dict]) -> str:
    """A markdown table: means over seeds, and in brackets the standard deviation if there are several."""
    columns = ["arm", "architecture", "samples", "rate", "strength", "seeds"]
    columns += ["text loss, change", "questions", "flow loss", "drawings", "text routing moved"]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for one in results:
        name, architecture, regime, rate, strength = (one["arm"][field] for field in SHOWN)
        cells = [name, architecture, regime, f"{rate:g}", "" if strength is None else f"{strength:g}"]
        cells += [str(len(one["seeds"])), _spread(one["change"]["text loss"], "+.3f")]
        cells += [_spread(one["after"]["questions"], ".1%"), _spread(one["after"]["flow loss"], ".3f")]
        cells += [_spread(one["after"]["drawings"], ".1%"), _spread(one["routing moved"], ".3f")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_frontier(results: list[dict], path: Path):
    """Retention against plasticity: the change of the text loss over the flow loss, a curve for each method over its
    rates or strengths; and its numbers as JSON."""
    curves: dict[str, list[list[float]]] = {}
    for one in results:
        arm = one["arm"]
        name = ", ".join(
            [
                arm["name"],
                *(arm[field] for field in ("architecture", "regime") if arm[field] not in ("rosetta", "none")),
            ]
        )
        point = [statistics.mean(one["after"]["flow loss"]), statistics.mean(one["change"]["text loss"])]
        curves.setdefault(name, []).append(point)
    path.with_suffix(".json").write_text(json.dumps(curves, indent=1) + "\n")
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for number, (name, points) in enumerate(curves.items()):
        points = sorted(points)
        axis.plot(*zip(*points, strict=True), marker="o^sv*DPX"[number // 10 % 8], color=f"C{number % 10}", label=name)
    axis.set(xlabel="flow loss of held-out drawings (plasticity: to the left)", yscale="symlog")
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set_ylabel("change of the held-out text loss, nats (retention: down)")
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_routing(results: list[dict], path: Path):
    """Where text tokens went before the stage and after it, for the plain arms and their control (paper, Fig. 6)."""
    shown: dict[str, torch.Tensor] = {}
    for one in results:
        arm = one["arm"]
        if (
            arm["architecture"] == "rosetta"
            and arm["name"] in ("plain", "MAOP", "anchor")
            and arm["learning_rate"] == 1e-3
        ):
            shown.setdefault("before", torch.tensor(one["routing"]["before"]))
            shown.setdefault(f"{arm['name']}, {arm['regime']}", torch.tensor(one["routing"]["after"]))
    if shown:
        path.with_suffix(".json").write_text(json.dumps({name: map.tolist() for name, map in shown.items()}) + "\n")
        save_routing_map(shown, path)


def _spread(values: list[float], style: str) -> str:
    mean = format(statistics.mean(values), style)
    return mean if len(values) == 1 else f"{mean} ({format(statistics.stdev(values), style.replace('+', ''))})"


if __name__ == "__main__":
    main()
