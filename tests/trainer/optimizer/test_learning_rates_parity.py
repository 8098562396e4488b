"""DiffLR under transformers' schedules gives the authors' learning rates."""

import json
from pathlib import Path

import pytest
from transformers import get_scheduler

from modeling_rosetta import RosettaConfig
from trainer import MAOPAdamW, diff_lr_groups


FIXTURE = Path(__file__).parents[2] / "fixtures" / "maop.json"
CASE = "lr_schedule_samples(step->lr per group; rosetta groups=[vae,default])"


@pytest.fixture(scope="module")
def authors() -> dict[str, dict[int, list[float]]]:
    rates = json.loads(FIXTURE.read_text())["cases"][CASE]
    return {stage: {int(step): lr for step, lr in of_stage.items()} for stage, of_stage in rates.items()}


def rates(optimizer, schedule: str, num_steps: int, step: int) -> dict[str, float]:
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=1000, num_training_steps=num_steps)
    groups = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    return {group["name"]: lr * factor(step) for group, lr, factor in groups}


@pytest.fixture
def make_optimizer(tiny_model):
    def make(learning_rate: float, generation_learning_rate: float | None = None) -> MAOPAdamW:
        model = tiny_model(RosettaConfig)
        return MAOPAdamW(diff_lr_groups(model, model.config, learning_rate, generation_learning_rate))

    return make


def test_stage_of_drawing(authors, make_optimizer):
    """They decay over 10^8 steps: constant in practice, to 4e-5 at the last of 400,000."""
    for step, (generation, base) in authors["stage3_rosetta"].items():
        exact = rates(make_optimizer(1e-5, 1e-4), "cosine", 10**8, step)
        constant = rates(make_optimizer(1e-5, 1e-4), "constant_with_warmup", 400_000, step)
        for given, tolerance in ((exact, 1e-12), (constant, 4e-5)):
            assert given["generation"] == pytest.approx(generation, rel=tolerance)
            assert given["base"] == given["shared_expert"] == pytest.approx(base, rel=tolerance)


def test_stage_of_understanding(authors, make_optimizer):
    """A cosine that they cut off at 1e-6; "cosine_with_min_lr" would stretch it between the two rates instead."""
    for step, (base,) in authors["stage2_2"].items():
        given = rates(make_optimizer(2e-5), "cosine", 20_000, min(step, 20_000))
        assert set(given) == {"base", "shared_expert", "generation"}
        assert all(max(rate, min(base, 1e-6)) == pytest.approx(base, rel=1e-12) for rate in given.values())
