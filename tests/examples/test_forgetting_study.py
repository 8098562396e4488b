"""The study of forgetting: its arms, that it resumes, and that its report says what its runs say."""

import json
import os

import pytest
import torch

from examples.forgetting_study import report, study
from examples.forgetting_study.arms import read_arms
from examples.forgetting_study.figures import draw_all
from examples.forgetting_study.routing import text_routing, total_variation
from examples.forgetting_study.starts import fisher_diagonal, target_config
from tests.trainer.tiny_training import record, tiny_model


def test_arms_are_rows(tmp_path):
    arms = {arm.id: arm for arm in read_arms(study.ARMS)}
    assert arms["anchor, rosetta, none, rate 0.001, strength 1000"].anchor_strength == 1000
    assert dict(arms["plain, moe, replay, rate 0.001"].ratios) == {"T2I": 0.6, "MMU": 0.25, "LM": 0.15}
    text = study.ARMS.read_text()
    for old, new, message in (
        ("{name: frozen, train: vae}", "{name: frozen, train: nothing}", "`train` of the arm 'frozen' must be one of"),
        ("{name: frozen, train: vae}", "{name: frozen, trian: vae}", r"must have fields of .*, got \['trian'\]"),
        (
            "{name: frozen, train: vae}",
            "{name: frozen, regime: some}",
            "`regime` of the arm 'frozen' must be one of .* got 'some'",
        ),
        ("{name: frozen, train: vae}", "{name: plain}", "Arms must differ"),
    ):
        file = tmp_path / "arms.yaml"
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_arms(file)


@pytest.mark.parametrize("architecture", ["rosetta", "moe", "mot", "no shared expert"])
def test_architectures(architecture):
    config = target_config(architecture, 10)
    assert bool(config.shared_experts) == (architecture != "no shared expert")
    assert list(config.expert_pools.values()) == {"moe": [12], "mot": [7, 10]}.get(architecture, [3, 3, 10])


def test_fisher_is_of_labels_that_the_model_draws():
    model = tiny_model()
    samples = [{**record(i), "labels": record(i)["labels"]} for i in (1, 2)]
    diagonal = fisher_diagonal(model, samples, seed=0)
    assert diagonal.keys() == {name for name, param in model.named_parameters() if param.requires_grad}
    assert all((total >= 0).all() for total in diagonal.values())
    assert diagonal["model.embed_tokens.weight"].sum() > 0
    targets = [sample["labels"] == -100 for sample in samples]
    for sample, absent in zip(samples, targets, strict=True):  # other labels at the same places change nothing
        sample["labels"] = torch.where(absent, -100, (sample["labels"] + 1) % 50)
    again = fisher_diagonal(tiny_model(), samples, seed=0)
    assert all(torch.equal(total, again[name]) for name, total in diagonal.items())


def test_text_routing():
    model = tiny_model()
    routing = text_routing(model, torch.randint(0, 50, (3, 9)))
    assert routing.shape == (2, 3) and torch.allclose(routing.sum(1), torch.ones(2, dtype=torch.float64))
    assert total_variation(routing, routing) == 0
    assert total_variation(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])) == 1
    assert not any(layer.mlp.pools["text"].router._forward_hooks for layer in model.model.layers)


def _result(arm, seed):
    before = {"text loss": 1.0, "flow loss": 2.0, "questions": 0.9, "drawings": 0.1, "routing": [[0.5, 0.5]]}
    after = {"text loss": 1.0 + seed, "flow loss": 1.0, "questions": 0.5, "drawings": 0.8, "routing moved": 0.25}
    after["routing"] = [[0.25, 0.75]]
    return {
        "before": before,
        "after": after,
        "averaged": {"0.5": {**after, "text loss": 1.5}},
        "log": [{"loss": 3.0, "step": 20, "flow_loss": 1.23456}, {"eval_loss": 1.0, "step": 20}],
        "stages": {"upcycled": 3.0, "LM": 2.0, "ViT mounted": 2.0, "MMU": 1.0},
        "seconds": 1.0,
    }


def test_runs_are_made_once_and_reported(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(study, "run_arm", lambda arm, seed, *_: made.append(arm.id) or _result(arm, seed))
    options = [
        "--arms",
        "frozen",
        "LoRA, rosetta, none, rate 0.001",
        "--seeds",
        "0",
        "2",
        "--output_dir",
        str(tmp_path),
    ]
    runs = tmp_path / "runs"
    runs.mkdir()
    alive = runs / "frozen, rosetta, none, rate 0.001, seed 0.claim"
    alive.write_text(str(os.getpid()))  # another process is at it
    (runs / "frozen, rosetta, none, rate 0.001, seed 2.claim").write_text("999999999")  # of one that was killed
    study.main(options)
    assert sorted(made) == ["LoRA, rosetta, none, rate 0.001"] * 2 + ["frozen, rosetta, none, rate 0.001"]
    alive.unlink()
    study.main(options)
    assert len(made) == 4 and len(list(runs.glob("*.json"))) == 4 and len(list(runs.iterdir())) == 4
    capsys.readouterr()
    report.main(["--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    frozen = next(one for one in results if one["arm"]["name"] == "frozen")
    assert frozen["change"]["text loss"] == [0.0, 2.0] and frozen["seeds"] == [0, 2]
    said = capsys.readouterr().out
    assert "| frozen | rosetta | none | 0.001 |  | 2 | +1.000 (1.414) | 1.000 (0.000) | 50.0% (0.0%) |" in said
    assert "| frozen, 0.5 new |" in said
    assert json.loads((tmp_path / "frontier.json").read_text())["frozen"] == [[1.0, 0.0], [1.0, 0.5]]  # and averaged
    report.main(["--output_dir", str(tmp_path / "again"), "--results", str(tmp_path / "results.json")])
    assert frozen["dynamics"] == {"step": [20], "flow_loss": [1.2346]} and frozen["stages"]["LM"] == 2.0
    for name in ("frontier.json", "results.md"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text()


def _outcome(name, strength, changes, flow_losses):
    arm = {"name": name, "architecture": "rosetta", "regime": "none", "learning_rate": 1e-3, "num_vae_experts": 6}
    outcome = {"change": {"text loss": changes}, "after": {"flow loss": flow_losses}, "seeds": [0, 1]}
    return {"arm": {**arm, "anchor_strength": strength}, **outcome}


def test_ratio_of_forgetting():
    """The anchor that forgets least among those that draw as well as the recipe."""
    recipe = _outcome("MAOP", None, [4.0, 6.0], [1.0, 1.0])
    anchors = [
        _outcome("anchor", 1.0, [2.0, 2.0], [1.0, 1.0]),
        _outcome("anchor", 10.0, [1.0, 2.0], [1.01, 1.03]),
        _outcome("anchor", 100.0, [0.1, 0.1], [1.03, 1.03]),
    ]
    ratio = report.forgetting_ratio([recipe, *anchors])
    assert ratio == {"strength": 10.0, "ratio": [4.0, 3.0], "flow loss": [1.01, 1.03]}
    assert report.forgetting_ratio([recipe, anchors[2]]) is None and report.forgetting_ratio(anchors) is None


def test_figures_show_what_their_json_says(tmp_path):
    """Of a plain arm with its control, another architecture and other numbers of experts."""
    results = []
    for architecture, regime, experts in (
        ("rosetta", "none", 6),
        ("rosetta", "none", 2),
        ("rosetta", "replay", 6),
        ("moe", "none", 6),
    ):
        one = _outcome("plain", None, [1.0, 2.0], [0.5, 0.7])
        one["arm"] |= {"architecture": architecture, "regime": regime, "num_vae_experts": experts}
        one["after"] |= {"text loss": [2.0, 4.0], "drawings": [0.25, 0.75]}
        one["stages"] = {"upcycled": 4.0, "LM": 3.0, "ViT mounted": 3.0, "MMU": 1.0}
        one["dynamics"] = {"step": [20, 40], "flow_loss": [1.5, 1.0], "text_loss": [2.5, 2.0]}
        one["routing"] = {"before": [[0.5, 0.5]], "after": [[0.25, 0.75]]}
        results.append(one)
    draw_all(results, tmp_path)
    read = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in read)
    assert read["stages"]["rosetta, none"] == [4.0, 3.0, 3.0, 1.0, 3.0]
    assert read["frontier"]["plain, 2 experts"] == [[0.5, 1.0]]
    assert read["experts"] == {
        "6": {"flow loss": [0.5, 0.7], "drawings": [0.25, 0.75]},
        "2": {"flow loss": [0.5, 0.7], "drawings": [0.25, 0.75]},
    }
    assert read["dynamics"]["text_loss, replay"] == {"plain, replay": [[20, 40], [2.5, 2.0]]}
    assert set(read["routing_rosetta"]) == {"before", "plain, none", "plain, replay"}


def test_unknown_arms(capsys):
    with pytest.raises(SystemExit):
        study.main(["--arms", "nothing"])
    assert "no arm has one of ['nothing'] in its name" in capsys.readouterr().err
