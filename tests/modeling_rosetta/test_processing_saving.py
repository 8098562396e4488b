"""A saved processor loads with `AutoProcessor` where the project cannot be imported."""

import os
import subprocess
import sys

import torch
from PIL import Image


SCRIPT = """
import sys

sys.modules["modeling_rosetta"] = None  # cannot be imported, even where the project is installed

import torch
from PIL import Image
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.save(
    {
        "drawn": dict(processor.draw_prompt(["a red stone", "x"])),
        "asked": dict(
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (96, 64), "red")}]}],
                tokenize=True, return_dict=True, return_tensors="pt",
            )
        ),
    },
    sys.argv[2],
)
processor.save_pretrained(sys.argv[3])
"""


def test_processor_loads_without_the_project(make_processor, tmp_path):
    processor = make_processor(
        base_size=32, latent_patch_size=8, embeds_from=["input_ids", "noisy_latents", "pixel_values"]
    )
    processor.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").is_file()

    arguments = [tmp_path / "saved", tmp_path / "batches.pt", tmp_path / "again"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=tmp_path, env=environment, check=True)

    loaded = torch.load(tmp_path / "batches.pt")
    drawn = processor.draw_prompt(["a red stone", "x"])
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (96, 64), "red")}]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    for batch, expected in ((loaded["drawn"], drawn), (loaded["asked"], asked)):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
    saved, again = (
        {path.name: path.read_text() for path in (tmp_path / name).iterdir()} for name in ("saved", "again")
    )
    assert saved == again
