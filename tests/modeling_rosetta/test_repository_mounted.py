"""A mounted model is a repository like any other: no code of the user's own is needed to load it."""

import os
import subprocess
import sys

import torch

from modeling_rosetta import mount
from tests.modeling_rosetta.test_mounting import AUDIO, SPEECH
from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


# Runs where the project cannot be imported.
STRANGER = """
import sys, torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForCausalLM, AutoProcessor

repository, results = sys.argv[1:]
trust = {"trust_remote_code": True}
inputs = torch.load(results)
pipe = DiffusionPipeline.from_pretrained(repository, **trust)
model = AutoModelForCausalLM.from_pretrained(repository, **trust)
processor = AutoProcessor.from_pretrained(repository, **trust)
conversation = [{"role": "user", "content": [{"type": "audio_features", "audio_features": inputs["audio"]}]}]
batch = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
spoken = processor(text="<|speech_features|>", speech_features=[inputs["audio"]], return_tensors="pt")
draw = {"num_inference_steps": 2, "latents": inputs["noise"], "output_type": "latent"}
torch.save(
    {
        "logits": model(**batch).logits.detach(),
        "velocity": model(**spoken).feature_velocities["speech"].detach(),
        "image": pipe("a red stone", **draw).images,
        "types": [t["name"] for t in model.config.token_types],
        "importable": "modeling_rosetta" in sys.modules,
    },
    results,
)
"""


def test_a_stranger_loads_a_mounted_model_with_both_libraries(tmp_path):
    pipe = tiny_pipeline()
    model, processor = pipe.transformer, pipe.processor
    mount(model, AUDIO, 4, processor=processor)
    mount(
        model, {**SPEECH, "name": "speech", "embeds_from": "speech_features"}, init_from="audio", processor=processor
    )
    pipe.save_pretrained(tmp_path / "Mounted-0.1B")
    audio, results = torch.randn(3, 5), tmp_path / "results.pt"
    torch.save({"audio": audio, "noise": noise()}, results)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "Mounted-0.1B"), str(results)],
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    theirs = torch.load(results, weights_only=False)
    conversation = [{"role": "user", "content": [{"type": "audio_features", "audio_features": audio}]}]
    batch = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    spoken = processor(text="<|speech_features|>", speech_features=[audio], return_tensors="pt")
    image = pipe("a red stone", num_inference_steps=2, latents=noise(), output_type="latent").images
    assert not theirs["importable"]
    assert theirs["types"] == ["text", "vit", "vae", "audio", "speech"]
    torch.testing.assert_close(theirs["logits"], model(**batch).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs["velocity"], model(**spoken).feature_velocities["speech"], rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs["image"], image, rtol=0, atol=1e-5)
