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

from examples.forgetting_study.figures import draw_all  # noqa: E402


SHARES = ("questions", "drawings", "names", "kinds", "yes or no", "drawn kinds", "drawn colours")
FIGURES = ("text loss", "flow loss", *SHARES)
DYNAMICS = ("step", "text_loss", "flow_loss", "capacity_rate_text", "capacity_rate_vae")
DYNAMICS += ("maop_fired_share", "maop_cosine", "maop_removed_share")
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
    draw_all(results, options.output_dir)
    print(table(results))
    print(f"The paper's recipe without replay over the anchor at equal flow loss: {forgetting_ratio(results)}")


def summary(runs: list[dict]) -> list[dict]:
    """
    Of each arm, and each average of its weights with the old ones, its fields, the seeds, what each figure was after
    the stage and by how much it had changed, a number a seed; and of the first seed the text routing, the text loss
    after each stage before and the log.
    """
    arms: dict[str, dict] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        outcomes = {"": run["after"], **{f", {share} new": after for share, after in run["averaged"].items()}}
        for suffix, after in outcomes.items():
            key = json.dumps([run["arm"], suffix])
            routing = {"before": run["before"]["routing"], "after": run["after"]["routing"]}
            arm = {**run["arm"], "name": run["arm"]["name"] + suffix}
            first = {"routing": routing, "stages": run["stages"], "dynamics": dynamics(run["log"])}
            arm = arms.setdefault(key, {"arm": arm, "seeds": [], "after": {}, "change": {}, **first})
            arm["seeds"].append(run["seed"])
            for figure in (figure for figure in FIGURES if figure in after):  # a miniature has its own
                arm["after"].setdefault(figure, []).append(after[figure])
                arm["change"].setdefault(figure, []).append(after[figure] - run["before"][figure])
            arm.setdefault("routing moved", []).append(run["after"]["routing moved"])
    return list(arms.values())


def dynamics(log: list[dict]) -> dict[str, list[float]]:
    """What each figure of training was at each logged `step`."""
    steps = [entry for entry in log if "loss" in entry]
    return {key: [round(entry[key], 4) for entry in steps] for key in DYNAMICS if steps and key in steps[0]}


def table(results: list[dict]) -> str:
    """A markdown table: means over seeds, and in brackets the standard deviation if there are several."""
    shares = [share for share in SHARES if any(share in one["after"] for one in results)]
    columns = ["arm", "architecture", "samples", "rate", "strength", "seeds"]
    columns += ["text loss, change", "flow loss", *shares, "text routing moved"]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for one in results:
        name, architecture, regime, rate, strength = (one["arm"][field] for field in SHOWN)
        if one["arm"]["num_vae_experts"] != 6:
            name += f", {one['arm']['num_vae_experts']} experts"
        cells = [name, architecture, regime, f"{rate:g}", "" if strength is None else f"{strength:g}"]
        cells += [str(len(one["seeds"])), _spread(one["change"]["text loss"], "+.3f")]
        cells += [_spread(one["after"]["flow loss"], ".3f")]
        cells += [_spread(one["after"][share], ".1%") for share in shares]
        cells += [_spread(one["routing moved"], ".3f")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def forgetting_ratio(results: list[dict]) -> dict | None:
    """
    How many times less than the paper's recipe without replay the anchor forgets at an equal flow loss: of the arms
    with an anchor at the recipe's rate whose flow loss is at most 2% above the recipe's, the one that forgets least.

    Returns:
        `dict`, *optional*: `strength`, and a number a seed: `ratio` of the changes of the text loss, and `flow loss`,
        the anchor's over the recipe's.
    """

    def of(name: str) -> list[dict]:
        fields = {"name": name, "architecture": "rosetta", "regime": "none", "learning_rate": 1e-3}
        return [one for one in results if fields.items() <= one["arm"].items() and one["arm"]["num_vae_experts"] == 6]

    def mean(one: dict, kind: str, figure: str) -> float:
        return statistics.mean(one[kind][figure])

    recipes, anchors = of("MAOP"), of("anchor")
    if not recipes:
        return None
    (recipe,) = recipes
    as_good = [one for one in anchors if mean(one, "after", "flow loss") <= 1.02 * mean(recipe, "after", "flow loss")]
    if not as_good:
        return None
    anchor = min(as_good, key=lambda one: mean(one, "change", "text loss"))
    seeds = [seed for seed in recipe["seeds"] if seed in anchor["seeds"]]

    def over(numerator: dict, denominator: dict, kind: str, figure: str) -> list[float]:
        values = [[one[kind][figure][one["seeds"].index(seed)] for seed in seeds] for one in (numerator, denominator)]
        return [above / below for above, below in zip(*values, strict=True)]

    return {
        "strength": anchor["arm"]["anchor_strength"],
        "ratio": over(recipe, anchor, "change", "text loss"),
        "flow loss": over(anchor, recipe, "after", "flow loss"),
    }


def _spread(values: list[float], style: str) -> str:
    mean = format(statistics.mean(values), style)
    return mean if len(values) == 1 else f"{mean} ({format(statistics.stdev(values), style.replace('+', ''))})"


if __name__ == "__main__":
    main()
