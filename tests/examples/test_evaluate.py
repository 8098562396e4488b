"""One command evaluates a model on the miniature's benchmarks and leaves what its card shows."""

import json

import numpy as np
import pytest
import scipy

from examples.evaluate import main
from examples.miniature import benchmarks
from examples.miniature.benchmarks import BENCHMARKS
from examples.miniature.digits import image_to_scan
from hub_upload.card import model_card
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline
from tests.trainer.evaluation.drawing_data import save_data
from tests.trainer.evaluation.drawing_judges import named_judges, save_judges
from trainer.evaluation import Choices, Drawing, Question


@pytest.fixture(autouse=True)
def english_is_read_once(english, monkeypatch):
    monkeypatch.setattr(benchmarks, "load_english", lambda: english)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pipe = tiny_pipeline()
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    pipe.save_pretrained(folder)
    return folder


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    three = {name: lambda make=make: first(make(), 3) for name, make in BENCHMARKS.items()}
    monkeypatch.setattr("examples.evaluate.BENCHMARKS", three)
    out = tmp_path / "out"
    main([str(folder), "--tasks", "miniature", "--output", str(out), "--batch_size", "2"])
    table = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [result["task"] for result in results["results"]] == [*BENCHMARKS]
    assert all(result["num_samples"] == 3 and result["protocol"] == "miniature" for result in results["results"])
    assert results["versions"]["torch"] and results["model"] == str(folder) and results["num_processes"] == 1
    assert (out / "results.md").read_text() in table + "\n"
    card = str(model_card(folder))
    for name in BENCHMARKS:
        assert name in table and f"| {name} |" in card
    main([str(folder), "--tasks", "miniature_question", "--output", str(tmp_path / "part"), "--limit", "1"])
    assert "1 (the first of 3)" in capsys.readouterr().out
    assert not (tmp_path / "part" / ".eval_results").exists()


def first(task, number):
    del task.samples[number:]
    return task


def test_drawings_are_judged(folder, tmp_path, capsys):
    save_data(tmp_path)
    save_judges(tmp_path)
    (tmp_path / "mine.txt").write_text("a red mug\na book\n")
    names = ["coco", "t2i_compbench_color", "prompts"]
    command = [str(folder), "--tasks", *names, "--data", str(tmp_path), "--prompts", str(tmp_path / "mine.txt")]
    command += ["--protocol", "stock"]
    judges = [judge for judge in named_judges(tmp_path) if not judge.startswith("detector")]
    out = tmp_path / "out"
    main([*command, "--judges", *judges, "--num_inference_steps", "1", "--output", str(out), "--limit", "2"])
    results = json.loads((out / "results.json").read_text())["results"]
    figures = [(r["task"], r["protocol"], [*r["metrics"]], r["num_samples"], r["limit"]) for r in results]
    assert figures == [
        ("coco", "stock", ["fid", "clip_score"], 2, 2),
        ("t2i_compbench_color", "stock", ["blip_vqa"], 20, None),
        ("mine", "own", ["clip_score"], 2, None),
    ]
    table = capsys.readouterr().out
    assert "| fid " in table and "| none " in table and "HPS v2.1 was left out" in table
    kept = sorted(each.name for each in (out / "drawings").iterdir())
    assert kept == ["coco--stock", "mine--own", "t2i_compbench_color--stock"]
    assert "the task 'prompts' needs a file" in fails(capsys, folder, "--tasks", "prompts")
    assert "A judge must be NAME=FOLDER" in fails(capsys, folder, "--tasks", "coco", "--judges", "klip=x")
    assert "COCO30k.json' cannot be read" in fails(capsys, folder, "--tasks", "coco", "--data", "nowhere")


def test_errors_are_one_sentence(folder, tmp_path, capsys, monkeypatch):
    assert "--tasks: there is no 'mmmlu', only miniature, table1" in fails(capsys, folder, "--tasks", "mmmlu")
    assert "The model 'no/such' cannot be loaded" in fails(capsys, "no/such", "--tasks", "miniature_question")
    assert "--limit must be at least 1" in fails(capsys, folder, "--tasks", "miniature_question", "--limit", 0)
    assert "`data`: nowhere/pope is no folder; it must hold coco_pope_SUBSET.json" in fails(
        capsys, folder, "--tasks", "pope", "--data", "nowhere"
    )
    stock = ("--protocol", "stock", "--tasks", "arc_challenge", "ai2d")
    assert "'ai2d' has no stock task in lm-eval, only ['mmlu'" in fails(capsys, folder, *stock)
    drawn = ("--protocol", "stock", "--tasks", "miniature_drawing", "ai2d", "--output", tmp_path)
    assert "'ai2d' has no stock task" in fails(capsys, folder, *drawn) and not [*tmp_path.iterdir()]  # before all work
    assert "`dtype` must be" in fails(capsys, folder, "--tasks", "miniature_question", "--dtype", "half32")


def test_benchmarks_ask_what_was_held_out(english):
    kinds = [type(make().samples[0].request) for make in BENCHMARKS.values()]
    assert kinds == [Choices, Question, Question, Drawing]
    digits = benchmarks.load_digits()[1]
    asked = benchmarks.question().samples
    assert [sample.answer for sample in asked] == digits.labels.tolist()
    paragraphs = [" ".join(paragraph.split()) for paragraph in english.held_out]
    for sample in benchmarks.continuation().samples:
        own = sample.request.continuations[sample.answer]
        text = sample.request.prompt + own
        assert text in paragraphs
        assert len({*sample.request.continuations}) == 4


def test_the_frechet_distance_of_drawings_is_that_of_their_features():
    task, (train, held_out) = benchmarks.drawing(), benchmarks.load_digits()
    drawn = train.images[:40]
    outcomes = [task.score(sample, image) for sample, image in zip(task.samples, drawn, strict=False)]
    svc = benchmarks.DigitClassifier(train).svc
    features, reference = (
        svc.decision_function(np.stack([image_to_scan(image).ravel() for image in images]))
        for images in (drawn, held_out.images)
    )
    root = scipy.linalg.sqrtm(np.cov(features.T) @ np.cov(reference.T)).real
    direct = ((features.mean(0) - reference.mean(0)) ** 2).sum()
    direct += np.trace(np.cov(features.T) + np.cov(reference.T) - 2 * root)
    metrics = task.metrics(outcomes)
    assert metrics["frechet_distance"] == pytest.approx(direct, abs=1e-6)
    right = sum(svc.predict([image_to_scan(image).ravel()])[0] == i // 20 for i, image in enumerate(drawn))
    assert metrics["accuracy"] == right / 40


def test_scores():
    said = ["Yes, it is.", "no", "yes", "Well."]
    samples = benchmarks.yes_no().samples  # yes, no, yes, no
    outcomes = [benchmarks.first_yes_or_no(*pair) for pair in zip(samples, said, strict=False)]
    assert [outcome["right"] for outcome in outcomes] == [1, 1, 1, 0] and outcomes[3]["missed"]
    assert benchmarks.f1_of_yes(outcomes) == {"f1": 1.0, "accuracy": 0.75}
    outcomes[1] = benchmarks.first_yes_or_no(samples[1], "yes")
    assert benchmarks.f1_of_yes(outcomes) == {"f1": pytest.approx(0.8), "accuracy": 0.5}
    assert benchmarks.likeliest(benchmarks.continuation().samples[1], [-3.0, -1.0, -2.0, -9.0])["right"] == 1
