"""lmms-eval finds the model by its entry point and runs the authors' protocol to the scores of this project. It has an
environment of its own: `make lmms-eval`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("lmms_eval", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).parent))

import stand_in_data  # noqa: E402

from tests.hub_upload import authors  # noqa: E402
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline, tiny_processor  # noqa: E402
from trainer.evaluation import evaluate, table1  # noqa: E402
from trainer.evaluation.loading import load_model_under_test  # noqa: E402


NAMES = ("mmmu", "mmbench_en", "mmbench_cn", "pope", "ai2d", "realworldqa")
TASKS = Path(__file__).parents[3] / "trainer" / "evaluation" / "lmms_tasks"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stand_in_data.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The authors' tiny checkpoint, converted."""
    pipe = tiny_pipeline(latent_prefix=False)
    pipe.register_modules(transformer=authors.model("rosetta", inference=True), processor=tiny_processor(False))
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


def run(model, data, output, tasks, **arguments) -> dict:
    """The harness's own command, and the results that it writes."""
    settings = {"pretrained": model, "device": "cpu", **arguments}
    command = [sys.executable, "-m", "lmms_eval", "--model", "rosetta", "--batch_size", "2"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in settings.items())]
    command += ["--tasks", ",".join(tasks), "--include_path", str(TASKS), "--output_path", str(output)]
    command += ["--log_samples"]
    environment = {**os.environ, "ROSETTA_DATA": str(data), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    found = [*output.rglob("*results.json")]  # it ends with 0 after an error, too
    assert len(found) == 1, ended.stderr[-4000:]
    return json.loads(found[0].read_text())["results"]


def test_scores_and_answers_are_those_of_this_project(model, data, tmp_path):
    found = run(model, data, tmp_path, [f"rosetta_{name}" for name in NAMES], protocol="authors")
    tested = load_model_under_test(str(model))
    tasks = [table1.load(name, data, None) for name in NAMES]
    for task, result in zip(tasks, evaluate(tested, tasks, batch_size=2), strict=True):
        name, figure = next(iter(result["metrics"].items()))
        harness_name = {"f1": "f1,none", "accuracy": "acc,none"}[name]
        assert found[f"rosetta_{task.name}"][harness_name] == pytest.approx(figure["value"], abs=1e-6)
        (file,) = tmp_path.rglob(f"*samples_rosetta_{task.name}.jsonl")
        given = {line["doc_id"]: line for line in map(json.loads, file.read_text().splitlines())}
        expected = tested.answers([sample.request for sample in task.samples], task.image_layout)
        for i, text in enumerate(expected):
            answer = given[i]["filtered_resps"]
            assert (answer[0] if isinstance(answer, list) else answer) == text.strip()


def test_images_as_the_processor_gives_them(model, data, tmp_path):
    found = run(model, data, tmp_path, ["rosetta_ai2d"])
    assert 0 <= found["rosetta_ai2d"]["acc,none"] <= 1
