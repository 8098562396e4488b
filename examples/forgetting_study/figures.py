"""The study's figures, each with its numbers as JSON beside it."""

import json
import statistics
from pathlib import Path

import matplotlib
import torch


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from examples.forgetting_study.routing import save_routing_map  # noqa: E402


MARKERS = "o^sv*DPX"
BASE_RATE = 1e-3
STAGES = ("upcycled", "LM", "ViT mounted", "MMU")


def draw_all(results: list[dict], folder: Path):
    draw_frontier(results, folder / "frontier.png")
    draw_stages(results, folder / "stages.png")
    draw_dynamics(results, folder / "dynamics.png")
    draw_routing(results, folder / "routing.png")
    draw_experts(results, folder / "experts.png")


def draw_frontier(results: list[dict], path: Path):
    """Retention against plasticity: the change of the text loss over the flow loss, a curve for each method over its
    rates or strengths; of the first seed, since a seed's flow losses differ from another's by more than a method's."""
    curves: dict[str, list[list[float]]] = {}
    for one in sorted(results, key=lambda one: _dose(one["arm"])):
        if one["arm"]["regime"] == "control":
            continue  # it does not learn to draw
        point = [one["after"]["flow loss"][0], one["change"]["text loss"][0]]
        curves.setdefault(_label(one["arm"]).split(", 0.")[0], []).append(point)
    figure, axis = plt.subplots(figsize=(8.5, 6), layout="constrained")
    for number, (name, points) in enumerate(sorted(curves.items())):
        axis.plot(*zip(*points, strict=True), label=name, **_style(number))
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set(
        xlabel="flow loss of held-out drawings (plasticity: to the left)",
        ylabel="change of the held-out text loss, nats (retention: down)",
    )
    figure.legend(loc="outside right upper", fontsize=6)
    _save(figure, path, curves)


def draw_stages(results: list[dict], path: Path):
    """The old skill over the stages, to the last of which drawing is added with the paper's replay and without any
    (paper, Fig. 1)."""
    curves = {}
    for one in results:
        arm = one["arm"]
        if arm["name"] == "plain" and arm["learning_rate"] == BASE_RATE and arm["num_vae_experts"] == 6:
            if arm["regime"] in ("replay", "none", "control") and one["stages"]:
                before = [one["stages"][stage] for stage in STAGES]
                curves[f"{arm['architecture']}, {arm['regime']}"] = [
                    *before,
                    statistics.mean(one["after"]["text loss"]),
                ]
    if curves:
        figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
        for number, (name, values) in enumerate(curves.items()):
            axis.plot([*STAGES, "T2I"], values, label=name, **_style(number))
        axis.set(ylabel="held-out text loss, nats")
        figure.legend(loc="outside right upper", fontsize=7)
        _save(figure, path, curves)


def draw_dynamics(results: list[dict], path: Path):
    """Losses and capacity rates while drawing is learnt, of the first seed (paper, Fig. 5)."""
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for one in results:
        arm = one["arm"]
        if arm["name"] in ("plain", "MAOP", "anchor") and arm["learning_rate"] == BASE_RATE:
            if arm["anchor_strength"] in (None, 10.0) and arm["num_vae_experts"] == 6:
                for key in ("flow_loss", "capacity_rate_vae", "text_loss", "capacity_rate_text"):
                    if arm["regime"] == ("replay" if "text" in key else "none") and key in one["dynamics"]:
                        panels.setdefault(f"{key}, {arm['regime']}", {})[_label(arm)] = [
                            one["dynamics"]["step"],
                            one["dynamics"][key],
                        ]
    if panels:
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.2 * len(panels), 3.4), layout="constrained", squeeze=False
        )
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=True):
            for number, (name, (steps, values)) in enumerate(curves.items()):
                axis.plot(steps, values, label=name, color=f"C{number}")
            axis.set(title=title, xlabel="step")
            axis.legend(fontsize=6)
        _save(figure, path, panels)


def draw_routing(results: list[dict], path: Path):
    """Where text tokens went before the stage and after it, and in the control without drawings (paper, Fig. 6)."""
    for architecture in ("rosetta", "moe"):
        shown: dict[str, torch.Tensor] = {}
        for one in results:
            arm = one["arm"]
            if arm["architecture"] == architecture and arm["learning_rate"] == BASE_RATE:
                if arm["name"] in ("plain", "MAOP") and arm["num_vae_experts"] == 6:
                    shown.setdefault("before", torch.tensor(one["routing"]["before"]))
                    shown.setdefault(f"{arm['name']}, {arm['regime']}", torch.tensor(one["routing"]["after"]))
        if shown:
            file = path.with_stem(f"{path.stem}_{architecture}")
            _write(file, {name: routing.tolist() for name, routing in shown.items()})
            save_routing_map(shown, file)


def draw_experts(results: list[dict], path: Path):
    """Flow loss and recognised drawings over the number of experts that draw, of which two are active (Fig. 7)."""
    points = {}
    for one in results:
        arm = one["arm"]
        if (arm["name"], arm["architecture"], arm["regime"]) == ("plain", "rosetta", "none"):
            if arm["learning_rate"] == BASE_RATE:
                points[arm["num_vae_experts"]] = {key: one["after"][key] for key in ("flow loss", "drawings")}
    if len(points) > 1:
        figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
        for axis, key in zip(axes, ("flow loss", "drawings"), strict=True):
            for number in sorted(points):
                axis.plot([number] * len(points[number][key]), points[number][key], "o", color="C0", alpha=0.5)
            axis.plot(sorted(points), [statistics.mean(points[number][key]) for number in sorted(points)], color="C0")
            axis.set(xlabel="experts that draw", ylabel=key)
        _save(figure, path, points)


def _dose(arm: dict) -> float:
    """What changes along a curve: the strength, the rate or, of averages, how little of the new weights is in them."""
    if arm["name"].endswith(" new"):
        return 1 / float(arm["name"].split()[-2])
    return arm["anchor_strength"] or arm["learning_rate"]


def _label(arm: dict) -> str:
    fields = (arm[field] for field in ("architecture", "regime") if arm[field] not in ("rosetta", "none"))
    experts = [f"{arm['num_vae_experts']} experts"] if arm["num_vae_experts"] != 6 else []
    # A method with strengths has a curve over them at the base rate.
    rates = [f"rate {arm['learning_rate']:g}"] if arm["anchor_strength"] and arm["learning_rate"] != BASE_RATE else []
    return ", ".join([arm["name"], *fields, *experts, *rates])


def _style(number: int) -> dict:
    return {"marker": MARKERS[number // 10 % len(MARKERS)], "color": f"C{number % 10}", "markersize": 4}


def _save(figure, path: Path, numbers):
    _write(path, numbers)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _write(path: Path, numbers):
    path.with_suffix(".json").write_text(json.dumps(numbers) + "\n")


__all__ = ["draw_all"]
