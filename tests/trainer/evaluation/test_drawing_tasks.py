"""Drawing tasks, from files in their real formats to figures, which equal a direct computation on the drawings."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline
from tests.trainer.evaluation.drawing_data import CAPTIONS, save_data
from tests.trainer.evaluation.drawing_judges import named_judges, save_judges
from trainer.evaluation.drawing import clip_scores, evaluate
from trainer.evaluation.drawing.drawings import Drawings
from trainer.evaluation.drawing.evaluate import draw_and_score
from trainer.evaluation.drawing.judges import Judges
from trainer.evaluation.drawing.tasks import coco, means_and_objects, own_prompts, t2i_compbench


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What people have of COCO and T2I-CompBench, and judges."""
    folder = tmp_path_factory.mktemp("data")
    save_data(folder)
    save_judges(folder)
    return folder


@pytest.fixture(scope="module")
def judges(data):
    return Judges.named(named_judges(data))


def small(task, **changes):
    """As the tiny pipeline can draw it."""
    return replace(task, settings={**task.settings, "height": 64, "width": 64, "num_inference_steps": 1}, **changes)


@pytest.fixture(scope="module")
def drawn(pipe, data, judges, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    return folder, draw_and_score(pipe, small(coco(data, judges)), "tiny", 2, folder)


def test_coco_of_the_authors(drawn, data, judges):
    folder, (outcomes, distance) = drawn
    task = coco(data, judges)
    drawings = Drawings.read(folder / "drawings" / "coco--authors")
    assert [record["seed"] for record in drawings.records] == [100, 101, 102, 103] and drawings.prompts == CAPTIONS
    cosines = clip_scores(drawings.files, CAPTIONS, judges.of_prompts)
    assert task.metrics(outcomes) == {"clip_score": pytest.approx(np.mean(cosines), abs=1e-6)}

    features = judges.inception_of("bilinear")(drawings.files).double().numpy()
    mean, covariance = torch.load(data / "coco" / "coco_val_fid_stats.pt", weights_only=False)
    own = np.cov(features, rowvar=False)
    root = sqrtm(own @ covariance).real
    expected = ((features.mean(0) - mean) ** 2).sum() + np.trace(own + covariance - 2 * root)
    assert distance == pytest.approx(expected, abs=1e-6)
    assert "HPS v2.1 was left out, as its weights were not given." in task.remarks


def test_what_is_said_of_a_task(drawn, pipe, data, judges):
    folder, (outcomes, distance) = drawn
    result = evaluate.evaluate_drawing(pipe, small(coco(data, judges)), "tiny", 2, folder)
    cosines = [outcome["clip_score"] for outcome in outcomes]
    clip = result["metrics"]["clip_score"]
    assert min(cosines) <= clip["low"] < clip["value"] == np.mean(cosines) < clip["high"] <= max(cosines)
    assert result["metrics"]["fid"] == {"value": distance, "low": None, "high": None}
    assert (result["num_samples"], result["protocol"], result["higher_is_better"]) == (4, "authors", False)
    assert result["settings"]["num_inference_steps"] == 1 and result["settings"]["noise_device"] == "cpu"


def test_an_evaluation_that_goes_on_draws_nothing_again(drawn, pipe, data, judges, monkeypatch):
    folder, result = drawn
    removed = folder / "drawings" / "coco--authors" / "00002_0.png"
    was = removed.read_bytes()
    removed.unlink()
    assert draw_and_score(pipe, small(coco(data, judges)), "tiny", 2, folder) == result
    assert removed.read_bytes() == was
    monkeypatch.setattr(type(pipe), "__call__", None)
    assert draw_and_score(pipe, small(coco(data, judges)), "tiny", 2, folder) == result


def test_ranks_share_the_scores(drawn, data, judges, monkeypatch):
    folder, _ = drawn
    drawings, task = Drawings.read(folder / "drawings" / "coco--authors"), coco(data, judges)

    def of_three_ranks(function):
        """What the last has when all have given."""
        given = dict.fromkeys(range(4), None)
        monkeypatch.setattr(evaluate, "gathered", lambda some: given.update(some) or given)
        for rank in (2, 0, 1):
            monkeypatch.setattr(evaluate, "rank_and_size", lambda rank=rank: (rank, 3))
            found = evaluate._shared(function, 4)
        return found

    done = []

    def scored(some):
        done.extend(some)
        files, records = [drawings.files[i] for i in some], [drawings.records[i] for i in some]
        return [outcome["clip_score"] for outcome in task.scores[0](files, records)]

    directly = clip_scores(drawings.files, CAPTIONS, judges.of_prompts)
    assert evaluate._shared(scored, 4) == pytest.approx(directly, abs=1e-6) and len({*directly}) == 4
    done.clear()
    assert of_three_ranks(scored) == pytest.approx(directly, abs=1e-6) and sorted(done) == [0, 1, 2, 3]


def test_coco_as_it_is_elsewhere(data, judges):
    task = coco(data, judges, "stock")
    assert task.inception.resize == "clean" and len(task.reference) == 8 and task.noise_device == "cpu"
    assert any("clean-fid" in remark for remark in task.remarks)
    without = coco(data, Judges(clip=judges.clip), "stock")
    assert without.inception is without.reference is None
    assert "FID was left out, as Inception was not given." in without.remarks


def test_t2i_compbench(pipe, data, judges, tmp_path):
    task = t2i_compbench(data, judges, "color")
    outcomes, distance = draw_and_score(pipe, small(task), "tiny", 8, tmp_path)
    drawings = Drawings.read(tmp_path / "drawings" / "t2i_compbench_color--authors")
    first, second = drawings.files
    blip = judges.of_questions
    red, blue, mug = (
        blip.yes([file], [question])[0]
        for file, question in ((first, "a red book?"), (first, "a blue mug?"), (second, "a red mug?"))
    )
    assert task.metrics(outcomes) == {"blip_vqa": pytest.approx((red * blue + mug) / 2, abs=1e-6)}
    assert distance is None
    stock = t2i_compbench(data, judges, "color", "stock")
    assert stock.num_images_per_prompt == 10
    with pytest.raises(ValueError, match="shape_val.csv' cannot be read"):
        t2i_compbench(data, judges, "shape")


def test_prompts_of_ones_own(pipe, data, judges, tmp_path):
    records = [
        {"prompt": "a red book", "tag": "colors", "include": [{"class": "book", "count": 1, "color": "red"}]},
        {"prompt": "a mug", "tag": "single_object", "include": [{"class": "mug", "count": 1}]},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    task = own_prompts(tmp_path / "mine.jsonl", judges, data / "coco" / "val2014")
    outcomes, distance = draw_and_score(pipe, small(task), "tiny", 8, tmp_path, seed=5)
    assert (task.name, task.protocol) == ("mine", "own") and distance > 0
    assert [*task.metrics(outcomes)] == ["objects", "objects_colors", "objects_single_object", "clip_score"]
    assert any("do not compare with published ones" in remark for remark in task.remarks)
    assert [r["seed"] for r in Drawings.read(tmp_path / "drawings" / "mine--own").records] == [5, 6]


def test_the_figure_of_objects_is_a_mean_over_kinds_of_prompts():
    outcomes = [{"tag": "colors", "right": 1}, {"tag": "colors", "right": 0}, {"tag": "counting", "right": 0}]
    assert means_and_objects([{**outcome, "clip_score": 0.5} for outcome in outcomes]) == {
        "objects": 0.25,
        "objects_colors": 0.5,
        "objects_counting": 0.0,
        "clip_score": 0.5,
    }


def test_what_is_missing_or_broken_is_said_before_anything_is_drawn(pipe, data, judges, tmp_path):
    with pytest.raises(ValueError, match="captions_val2014.json' cannot be read"):
        coco(tmp_path, judges, "stock")
    with pytest.raises(ValueError, match="`reference`: there is no folder '.*nowhere'"):
        coco(data, judges, reference=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="The CLIP model 'nowhere/none' cannot be loaded"):
        coco(data, Judges(clip="nowhere/none"))
    (tmp_path / "q.jsonl").write_text('{"prompt": "x", "questions": ""}')
    with pytest.raises(ValueError, match="needs `questions`"):
        own_prompts(tmp_path / "q.jsonl", judges)
    reference = tmp_path / "reference"
    reference.mkdir()
    Image.new("RGB", (9, 9)).save(reference / "a.png")
    (reference / "b.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="b.png' cannot be read as an image"):
        draw_and_score(pipe, small(coco(data, judges, reference=reference)), "tiny", 8, tmp_path / "out")
    assert not (tmp_path / "out").exists()
