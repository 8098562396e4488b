"""
Runs in a process of its own, where the project cannot be imported: loads a repository as anybody would, asks it
something and has it draw something.

    python -I stranger.py RESULTS REPOSITORY [REVISION]
"""

import json
import sys


for project in ("modeling_rosetta", "trainer", "hub_upload"):
    sys.modules[project] = None  # importing it fails, even where it is installed

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor  # noqa: E402


def main(results: str, repository: str, revision: str | None = None):
    # One copy of the weights at a time, at half the size.
    options = {"trust_remote_code": True, "revision": revision, "dtype": torch.bfloat16}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(repository, **options).to(device)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True, revision=revision)
    sources = [token_type["embeds_from"] for token_type in model.config.token_types]
    found = {"answer": answer(model, processor, "pixel_values" in sources)}
    del model
    pipe = DiffusionPipeline.from_pretrained(repository, **options).to(device)
    if "noisy_latents" in sources:
        found["drawing"] = draw(pipe)
    with open(results, "w") as file:
        json.dump(found, file)


def answer(model, processor, sees: bool) -> str:
    """A few tokens on a question, about a picture if the model understands them."""
    content = [{"type": "text", "text": "What is this?"}]
    if sees:
        content.insert(0, {"type": "image", "image": Image.linear_gradient("L").resize((64, 64)).convert("RGB")})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        if not model(**inputs).logits.isfinite().all():
            raise ValueError("the logits of an answer are not finite")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :])


def draw(pipe) -> list[int]:
    """Two steps of a picture; its shape."""
    pipe.set_progress_bar_config(disable=True)
    output_type = "latent" if pipe.vae is None else "pt"
    image = pipe("a red stone", num_inference_steps=2, output_type=output_type).images
    if not image.isfinite().all():
        raise ValueError("the drawn picture is not finite")
    return list(image.shape[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
