"""The recipes are the paper's Table 3, and what is wrong with a recipe is said before anything is loaded."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.stages.recipe import accumulation_steps, read_recipe


RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
STAGES = ("1_lm", "2_projectors", "3_mmu", "4_t2i")
TABLE_3 = {
    # steps, rows of a step, tokens of a row, base rate, generative rate, warm-up, shares of LM, MMU and T2I
    "1_lm": (35_000, 256, 32_768, 1e-4, None, 500, {"lm": 1.0}),
    "2_projectors": (3_000, 64, 8_192, 1e-4, None, 1_000, {"mmu": 1.0}),
    "3_mmu": (20_000, 64, 8_192, 2e-5, None, 1_000, {"mmu": 0.8, "lm": 0.2}),
    "4_t2i": (400_000, 64, 8_192, 1e-5, 1e-4, 1_000, {"t2i": 0.6, "mmu": 0.25, "lm": 0.15}),
}


def read(name: str, *overrides: str):
    return read_recipe([f"{RECIPES}/{name}.yaml", "--use_cpu=true", *overrides])


@pytest.mark.parametrize("architecture", ["rosetta", "moe", "mot"])
@pytest.mark.parametrize("name", STAGES)
def test_table_3(name, architecture):
    stage, sources, training = read(name, f"--architecture={architecture}")
    steps, rows, tokens, rate, generation_rate, warmup, shares = TABLE_3[name]
    assert (training.max_steps, stage.global_batch_size, stage.max_length) == (steps, rows, tokens)
    assert (training.learning_rate, training.generation_learning_rate) == (rate, generation_rate)
    assert training.warmup_steps == warmup
    assert {source.task: source.weight for source in sources} == shares
    assert stage.train == ("projectors" if name == "2_projectors" else "backbone")
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (training.weight_decay, training.decay_all_parameters, training.max_grad_norm) == (0.1, True, 1.0)
    assert training.bf16 and not training.latent_projections_at_generation_rate
    protects = name == "4_t2i" and architecture == "rosetta"
    assert (training.shield_steps, training.maop) == ((5_000, True) if protects else (0, False))
    assert stage.architecture == architecture and training.output_dir == f"outputs/{architecture}/{name}"


@pytest.mark.parametrize("folder", [".", "miniature", "emoji"])
def test_each_stage_starts_from_the_one_before(folder):
    recipes = [read(f"{folder}/{name}", "--architecture=mot") for name in STAGES]
    for (_, _, before), (stage, _, _) in zip(recipes, recipes[1:], strict=False):
        assert stage.model == f"{before.output_dir}/model"


def test_only_the_joint_stage_has_another_schedule():
    schedules = {name: read(name)[2].lr_scheduler_type for name in STAGES}
    assert schedules.pop("3_mmu") == "cosine_with_min_lr"
    assert set(schedules.values()) == {"constant_with_warmup"}
    assert read("3_mmu")[2].lr_scheduler_kwargs == {"min_lr": 1e-6}


@pytest.mark.parametrize("folder", ["miniature", "emoji"])
@pytest.mark.parametrize("name", STAGES)
def test_a_miniature_differs_in_sizes_only(name, folder):
    full, full_sources, full_training = read(name)
    stage, sources, training = read(f"{folder}/{name}")
    for field in ("stage", "architecture", "train", "prompt_dropout"):
        assert getattr(stage, field) == getattr(full, field)
    for field in ("lr_scheduler_type", "maop", "weight_decay", "decay_all_parameters", "max_grad_norm", "adam_beta2"):
        assert getattr(training, field) == getattr(full_training, field)
    assert bool(training.shield_steps) == bool(full_training.shield_steps)
    assert [(s.task, s.weight) for s in sources] == [(s.task, s.weight) for s in full_sources]


@pytest.mark.parametrize(("rows", "processes", "expected"), [(1, 1, 256), (2, 1, 128), (2, 64, 2)])
def test_the_global_batch_is_the_same_on_any_number_of_processes(rows, processes, expected, monkeypatch):
    stage, _, _ = read("1_lm")
    training = SimpleNamespace(per_device_train_batch_size=rows, world_size=processes, gradient_accumulation_steps=1)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert accumulation_steps(stage, training) == expected
    training.world_size = 1
    if processes > 1:  # they would all write to the same folder
        with pytest.raises(ValueError, match="64 processes were started, but accelerate takes each for one of 1"):
            accumulation_steps(stage, training)


def test_the_global_batch_must_divide():
    with pytest.raises(ValueError, match="`global_batch_size` must be a multiple of .* = 3 x 1, got 256"):
        read("1_lm", "--per_device_train_batch_size=3")


def test_command_line_wins():
    stage, _, training = read("1_lm", "--max_steps", "7", "--bf16", "false", "--model=x")
    assert (training.max_steps, training.bf16, stage.model) == (7, False, "x")


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe that extends the first stage's, with more lines."""

    def write(lines: str = "") -> str:
        base = Path(f"{RECIPES}/1_lm.yaml").resolve()
        (tmp_path / "mine.yaml").write_text(f"extends: {base}\nuse_cpu: true\n{lines}\n")
        return str(tmp_path / "mine.yaml")

    return write


def test_null_is_the_default(recipe):
    assert read_recipe([recipe()])[0].vocab_size == 157420
    assert read_recipe([recipe("vocab_size: null")])[0].vocab_size is None


@pytest.mark.parametrize("sharding_recomputes", [False, True])
def test_activations_are_recomputed_once(sharding_recomputes, monkeypatch):
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", str(sharding_recomputes).lower())
    assert bool(read("1_lm")[2].gradient_checkpointing) != sharding_recomputes
    assert not read("miniature/1_lm")[2].gradient_checkpointing


def test_what_a_run_is_evaluated_on_and_asked(recipe):
    lines = """
validation:
  books: {task: lm, path: books.jsonl}
  speeches: {task: lm, path: speeches, sample_by: paragraph}
validation_samples: 7
eval_strategy: steps
eval_steps: 5
samples:
  steps: 10
  questions: [{question: "why?"}]
"""
    stage, sources, training = read_recipe([recipe(lines)])
    assert {name: source.path for name, source in stage.validation.items()} == {
        "books": "books.jsonl",
        "speeches": "speeches",
    }
    assert (stage.validation_samples, training.eval_steps, stage.samples.steps) == (7, 5, 10)
    assert stage.samples.questions == [{"question": "why?"}] and stage.samples.prompts == []
    assert read_recipe([recipe()])[0].validation == {} and read_recipe([recipe()])[0].samples is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("learning_rte: 1", "unknown key 'learning_rte'; the nearest known one is 'learning_rate'"),
        ("baselines: {maop_: false}", "unknown key 'maop_'; the nearest known one is 'maop'"),
        ("data: [{task: lm, pth: x}]", "unknown key 'pth' of `data`; the nearest known one is 'path'"),
        ("data: [{task: lm}]", r"an entry of `data` lacks \['path'\]"),
        ("data: [text]", "each entry of `data` must hold keys and values, got 'text'"),
        ("data: []", "`data` must list at least one source"),
        ("max_steps: -1", "`max_steps` must be at least 1, got -1"),
        ("max_length: 0", "`max_length` must be at least 1, got 0"),
        ("image_pixels: [4]", r"`image_pixels` must be the least and the most pixels, got \[4\]"),
        ("gradient_accumulation_steps: 2", "`gradient_accumulation_steps` must not be given"),
        ("validation: [text]", r"`validation` must name each of its sources, got \['text'\]"),
        ("validation: {a: {task: lm, pth: x}}", "unknown key 'pth' of `validation`; the nearest known one is 'path'"),
        ("validation: {a: {task: lm, path: x}}", "`eval_strategy` must be 'steps' for the sources of `validation`"),
        ("validation_samples: 0", "`validation_samples` must be at least 1, got 0"),
        ("samples: {prompts: [a]}", "`samples` must have `steps` and any of"),
        ("samples: {steps: 5, prompts: [3]}", "`prompts` must be a list of strings"),
        ("extends: none.yaml", "There is no recipe '.*none.yaml'"),
        ("stage: [", "is no YAML"),
    ],
)
def test_errors_in_a_recipe(recipe, lines, message):
    with pytest.raises(ValueError, match=message):
        read_recipe([recipe(lines)])


def test_errors_on_the_command_line(recipe, capsys):
    with pytest.raises(ValueError, match="There is no recipe 'none.yaml'"):
        read_recipe(["none.yaml"])
    with pytest.raises(ValueError, match="The recipe must come first"):
        read_recipe(["--max_steps", "3"])
    with pytest.raises(ValueError, match="Unknown argument '--max_step=3'; the nearest known one is '--max_steps'"):
        read_recipe([recipe(), "--max_step=3"])
    for section in ("--data=x", "--data", "--baselines={}", "--extends=x"):
        with pytest.raises(ValueError, match="cannot be given on the command line: write a recipe that `extends`"):
            read_recipe([recipe(), section])
    for wrong in ("--architecture=mixture", "--learning_rate=fast"):
        with pytest.raises(SystemExit):
            read_recipe([recipe(), wrong])
        assert f"argument {wrong.split('=')[0]}" in capsys.readouterr().err
