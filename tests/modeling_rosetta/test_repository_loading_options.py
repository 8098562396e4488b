"""What a repository is loaded with by diffusers: dtypes by part, quantised experts, variants."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


IDS = torch.arange(24).view(2, 12)
# In a process of its own, with a cache of its own for the code of repositories.
LOADER = """
import sys, torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from modeling_rosetta import RosettaQuantizationConfig

repository, small, results = sys.argv[1:]
found = torch.load(results)
asked = {"prompt": "x", "latents": found["noise"], "num_inference_steps": 2, "output_type": "latent"}

def load(folder, **kwargs):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **kwargs)

def record(name, pipe):
    found[name] = {"image": pipe(**asked).images, "logits": pipe.transformer(found["ids"]).logits.detach()}

record("plain", load(repository))
mapping = {"transformer": RosettaQuantizationConfig(4, 8)}
pipe = load(repository, quantization_config=PipelineQuantizationConfig(quant_mapping=mapping))
record("quantised", pipe)
pipe.save_pretrained(small)
record("loaded again", load(small))
for part in ("transformer", "vae"):
    pipe = load(repository, torch_dtype={part: torch.bfloat16, "default": torch.float32})
    found[part] = {name: getattr(pipe, name).dtype for name in ("transformer", "vae")}
try:
    load(repository, variant="fp16")
except ValueError as error:
    found["variant"] = str(error)
torch.save(found, results)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    tiny_pipeline().save_pretrained(folder / "Rosetta")
    return folder


@pytest.fixture(scope="module")
def found(folder) -> dict:
    torch.save({"noise": noise(), "ids": IDS}, folder / "results.pt")
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", LOADER, folder / "Rosetta", folder / "small", folder / "results.pt"],
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "PYTHONPATH": str(root)},
        check=True,
    )
    return torch.load(folder / "results.pt")


def test_what_was_quantised_is_saved_and_loaded_as_it_is(folder, found):
    assert not torch.allclose(found["quantised"]["image"], found["plain"]["image"], atol=1e-3)
    for name in ("image", "logits"):
        assert torch.equal(found["loaded again"][name], found["quantised"][name])
    file = "model.safetensors"
    assert (folder / "small" / file).stat().st_size < 0.85 * (folder / "Rosetta" / file).stat().st_size
    config = json.loads((folder / "small" / "config.json").read_text())["quantization_config"]
    assert config == {"quant_method": "rosetta", "bits": 4, "group_size": 8}


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_each_part_has_the_dtype_asked_for(part, found):
    others = {"transformer": torch.float32, "vae": torch.float32}
    assert found[part] == {**others, part: torch.bfloat16}


def test_a_variant_is_refused(found):
    assert "variant" in found["variant"]
