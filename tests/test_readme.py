"""Every block of code in the README runs as it is written there, on tiny models in place of trained ones."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import HfArgumentParser, Qwen3Config, Qwen3ForCausalLM

import examples.finetune
from hub_upload import checkpoint_conversion, publication, verification
from hub_upload.__main__ import main
from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from modeling_rosetta.modeling_rosetta import RosettaVisionModel
from tests.conftest import tiny_model
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline
from trainer import RosettaTrainer, RosettaTrainingArguments


TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
SHARED = {"attention_stream": "shared", "shared_expert": "global"}


PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SHELL = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def pipeline():
    pipe = tiny_pipeline()
    pipe.processor.image_processor.patch_size = pipe.transformer.config.vision_config.patch_size
    return pipe


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the README's paths lead, as after `make quickstart`."""
    monkeypatch.chdir(tmp_path)
    pipeline().save_pretrained("outputs/quickstart/model")
    Image.new("L", (32, 32)).save("outputs/quickstart/digit.png")
    return tmp_path


def dense_model() -> dict:
    """What the block on training takes as given."""
    pipe = pipeline()
    config = pipe.transformer.config
    sizes = {name: getattr(config, name) for name in ("hidden_size", "intermediate_size", "head_dim")}
    sizes["vocab_size"] = 151_936  # Qwen3's, where the marks of images have their ids
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": True}
    vit = {"name": "vit", "embeds_from": "pixel_values", "expert_pool": "vit", **SHARED}
    return {
        "dense_qwen3": Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)),
        "vit_type": vit,
        "vit": RosettaVisionModel._from_config(config.vision_config),
        "vae_type": {**vit, "name": "vae", "embeds_from": "noisy_latents", "expert_pool": "vae"},
        "processor": pipe.processor,
        "samples": [pipe.processor.training_sample("a rosetta stone")] * 8,
    }


def a_model() -> dict:
    pipe = pipeline()
    return {"model": pipe.transformer, "processor": pipe.processor, "features": torch.randn(5, 18)}


GIVEN = {
    "pipe = DiffusionPipeline": dict,
    "trainer.train()": dense_model,
    "unmount(model": a_model,
    "add_adapter": lambda: {"model": tiny_model()},
    "MAOPAdamW([": lambda: {"shared": [nn.Parameter(torch.ones(2, 2))], "rest": [nn.Parameter(torch.ones(2))]},
}


def test_every_block_is_run():
    assert all(sum(mark in code for mark in GIVEN) == 1 for code in PYTHON) and len(PYTHON) == len(GIVEN)


@pytest.mark.parametrize("mark", GIVEN)
def test_python_runs_as_it_is_written(mark, folder, monkeypatch):
    (code,) = (code for code in PYTHON if mark in code)
    train = RosettaTrainer.train

    def train_a_step(trainer):
        trainer.args.max_steps, trainer.args.per_device_train_batch_size = 1, 2
        return train(trainer)

    monkeypatch.setattr(RosettaTrainer, "train", train_a_step)
    names = GIVEN[mark]()
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    if "pipe" in names:
        assert names["pipe"].transformer is names["model"] and Path("seven.png").is_file()
        loaded = names["pipe"].from_pretrained(
            names["repo"],
            transformer=RosettaForCausalLMAndImageGeneration.from_pretrained(names["repo"]),
            trust_remote_code=True,
        )
        assert loaded.transformer is not names["model"]


@pytest.mark.parametrize("code", SHELL, ids=[code.split("\n")[0][:40] for code in SHELL])
def test_shell_names_what_is_there(code, monkeypatch):
    """Files exist, and options are parsed by the programs themselves."""
    monkeypatch.chdir(TOP)
    ran = []
    for module, name in ((publication, "push"), (verification, "verify"), (checkpoint_conversion, "convert")):
        monkeypatch.setattr(module, name, lambda *arguments, **options: ran.append(arguments) or [])
    for line in code.replace("\\\n", "").splitlines():
        match shlex.split(line.replace("$stage", "1_lm"), comments=True):
            case ["export", *settings]:
                assert all(re.fullmatch(r"\w+=\w+", setting) for setting in settings)
            case ["make", *targets]:
                rules = re.findall(r"^(\w+):", (TOP / "Makefile").read_text(), re.MULTILINE)
                assert targets and set(targets) <= set(rules)
            case ["python", "-m", "hub_upload", *arguments]:
                assert main(arguments) == 0 and ran.pop()
            case ["python", script]:
                assert Path(script).is_file()
            case ["accelerate", "launch", *options, "examples/pretrain.py", recipe]:
                assert options[0] == "--config_file" and Path(options[1]).is_file() and Path(recipe).is_file()
            case ["accelerate", "launch", "examples/finetune.py", *arguments]:
                kinds = [examples.finetune.FineTuning, RosettaTrainingArguments]
                given = [*arguments, "--output_dir", "run", "--use_cpu"]
                assert HfArgumentParser(kinds, allow_abbrev=False).parse_args_into_dataclasses(given)
            case ["for", "stage", "in", *stages, "do"]:
                for stage in stages:
                    assert Path(f"examples/recipes/miniature/{stage.strip(';')}.yaml").is_file()
            case ["done"] | []:
                pass
            case other:
                pytest.fail(f"{other} is not looked at")
