"""Tasks while a model trains: the figures of the weights at that step, and the same training as without them."""

import json
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import small_tasks  # noqa: E402
import tiny_training  # noqa: E402
from ranks import forget_accelerator, run_on_ranks  # noqa: E402

from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline  # noqa: E402
from trainer.evaluation import evaluate  # noqa: E402
from trainer.evaluation.in_training import TasksInTraining, under_test  # noqa: E402


# So small that AdamW turns no rounding of small gradients into another picture.
STEP = {"learning_rate": 1e-7}
TASKS = (small_tasks.questions(5), small_tasks.choices(5), small_tasks.drawings(3))


def trainer_with(folder, tasks=TASKS, steps=2, max_steps=3, **arguments):
    """Two steps apart, on text."""
    pipe = tiny_pipeline(latent_prefix=False)
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    pipe.processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    pipe.transformer.model.visual.requires_grad_(False)
    texts = [record for record in map(tiny_training.record, range(30)) if "latents" not in record]
    trainer = tiny_training.tiny_trainer(
        pipe.transformer, folder, texts, vae=pipe.vae, max_steps=max_steps, **arguments
    )
    trainer.processing_class = pipe.processor
    if tasks:
        trainer.add_callback(TasksInTraining(trainer, [*tasks], steps, batch_size=2))
    return trainer


def figures(trainer) -> dict[int, dict]:
    found = {}
    for log in trainer.state.log_history:
        if "eval_questions_accuracy" in log:
            found[log["step"]] = {name: value for name, value in log.items() if name.startswith("eval_")}
    return found


def test_figures_are_those_of_the_weights_and_training_goes_on_as_without(tmp_path):
    trainer, plain = trainer_with(tmp_path / "a"), trainer_with(tmp_path / "b", tasks=())
    trainer.train()
    plain.train()
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [log["loss"] for log in trainer.state.log_history if "loss" in log] == [
        log["loss"] for log in plain.state.log_history if "loss" in log
    ]
    assert [*figures(trainer)] == [2, 3]
    trainer.model.eval()
    after = evaluate(under_test(trainer.model, trainer.processing_class, trainer.vae), [*TASKS])
    assert figures(trainer)[3] == {
        f"eval_{result['task']}_{name}": pytest.approx(figure["value"], abs=1e-6)
        for result in after
        for name, figure in result["metrics"].items()
    }


def test_what_cannot_be_evaluated_is_said_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="`steps` must be an integer of at least 1, got 0"):
        trainer_with(tmp_path, steps=0)
    trainer = trainer_with(tmp_path, tasks=())
    trainer.vae = None
    with pytest.raises(ValueError, match="does not draw"):
        TasksInTraining(trainer, [TASKS[2]], 2)


def test_on_sharded_ranks(tmp_path):
    """Two of them, which five samples do not divide; and losses of held-out records count each of them once."""
    run_on_ranks(train_on_ranks, 2, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    sharded, losses = found[0]
    torch.manual_seed(0)
    alone = trainer_with(tmp_path / "alone", steps=1, max_steps=1, per_device_train_batch_size=4, **STEP)
    alone.train()
    assert sharded == {str(step): pytest.approx(of_step, abs=1e-2) for step, of_step in figures(alone).items()}
    assert losses == pytest.approx(held_out_losses(tmp_path / "alone"), rel=1e-5)
    assert losses["eval_num_samples"] == 5


def train_on_ranks(folder: Path):
    losses = held_out_losses(folder / "ranks")
    forget_accelerator()
    fsdp = {"fsdp": True, "fsdp_config": {}, **STEP}
    trainer = trainer_with(folder / "ranks", steps=1, max_steps=1, per_device_train_batch_size=2, **fsdp)
    trainer.train()
    assert any("DTensor" in type(p.data).__name__ for p in trainer.model.parameters())
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps([figures(trainer), losses]))


def held_out_losses(folder: Path) -> dict:
    records = [tiny_training.record(index, noisy=True) for index in range(5)]
    trainer = tiny_training.tiny_trainer(
        tiny_training.tiny_model(), folder, eval_dataset=records, per_device_eval_batch_size=2
    )
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name[5:]}"] for name in metrics if name.endswith(("_loss", "num_samples", "images"))}
