"""Two hundred calls of the pipeline and the processor that are wrong or odd: a clear error, or the right result."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


NAN, INF = float("nan"), float("inf")
SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
NO_NUMBERS = ["two", None, [2], {}, torch.ones(2), NAN]
NO_COUNTS = [*NO_NUMBERS, 0, -1, 1.5, True, INF, np.float64(2)]
NO_TEXTS = [
    3,
    3.5,
    b"x",
    {"x": 1},
    {"x"},
    object(),
    True,
    torch.zeros(1),
    np.array(["x"]),
    [3],
    [None],
    [["x"]],
    ["x", b""],
]
NO_TIMES = [
    [],
    (),
    [0.5, 1.0],
    [1.0, 1.0],
    [1.0, 0.0],
    [1.0, -0.5],
    0.5,
    "high",
    ["high"],
    [None],
    [NAN],
    [INF],
    [[1.0]],
]
NO_TENSORS = [3, "x", [1.0], np.zeros((1, 8, 4, 4)), torch.zeros(2), torch.zeros(1, 3, 5), torch.zeros(0, 3, 5)]


def seeded(number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(number)]


def lazily(*values):
    """What can be read once only."""
    return (value for value in values)


DRAWING = {
    "prompt": [*NO_TEXTS, None, [], (), lazily("x"), "\ud83d"],
    "negative_prompt": [*NO_TEXTS, [], (), ["x", "y"], lazily("x")],
    "system_prompt": [3, b"x", ["x"], {}],
    "height": [0, -16, 50, 16.0, 64.5, "64", True, [64], NAN, np.float64(64)],
    "width": [0, -16, 50, 16.0, "64", (64,), np.array([64, 64])],
    "num_inference_steps": NO_COUNTS,
    "num_images_per_prompt": NO_COUNTS,
    "max_sequence_length": [*NO_COUNTS, 10],
    "sigmas": [*NO_TIMES, [1.5, 0.5], lazily(1.0, 0.5), {1.0: 0}],
    "timesteps": [*NO_TIMES[:-1], [1500.0, 500.0], lazily(1000.0, 500.0)],
    "guidance_scale": [*NO_NUMBERS, INF, True, "5"],
    "guidance_rescale": [*NO_NUMBERS, -0.1, 1.1],
    "guidance_interval": [0.5, None, (), (0.2,), (0.8, 0.4), (0.0, 2.0), (0.0, NAN), "01", (0.0, 0.5, 1.0)],
    "use_zero_star": [1, None, "yes"],
    "step_cache_threshold": [*NO_NUMBERS, -0.1, INF, True],
    "generator": [0, "x", [0], [None], [], seeded(2), tuple(seeded(3)), np.random.default_rng(0), lazily(*seeded(1))],
    "latents": [*NO_TENSORS, noise(2), noise()[:, :4], noise()[0], noise().flatten(1)],
    "prompt_embeds": NO_TENSORS,
    "negative_prompt_embeds": NO_TENSORS,
    "output_type": ["jpeg", None, 3, ["pil"], "PIL"],
    "attention_kwargs": [3, "scale", {"mask": 1}, {"scale": "much"}, [("scale", 1)]],
    "callback_on_step_end": [3, "x", [print]],
    "callback_on_step_end_tensor_inputs": [3, "latents", ["noise_pred"], [3], {"latents": 1}, lazily("latents")],
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def cases(table: dict) -> list:
    return [
        pytest.param(name, value, id=f"{name}-{i}") for name, values in table.items() for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(("argument", "value"), cases(DRAWING))
def test_a_drawing_that_is_asked_for_wrongly(argument, value, pipe, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    asked = {"prompt": "a red stone", "num_inference_steps": 2, "output_type": "latent", argument: value}
    if argument == "prompt_embeds":
        asked |= {"prompt": None, "prompt_embeds_mask": torch.ones(1, 3)}
    if argument == "negative_prompt_embeds":
        asked["negative_prompt_embeds_mask"] = torch.ones(1, 3)
    with pytest.raises(ValueError, match=f"`{argument}") as error:
        pipe(**asked)
    assert len(str(error.value)) < 400


def file(image: Image.Image, kind: str, share: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()[: int(share * len(buffer.getvalue()))]


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))
READING = {
    "text": [None, *NO_TEXTS, [], "", [""], lazily("x")],
    "images": [
        *(3, 3.5, {}, [None], [[3]], "no_such.png", "", b"", b"no image", object(), lazily(PHOTO)),
        *(file(PHOTO, kind, 0.4) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")),
        *(np.zeros(shape) for shape in ((0, 0, 3), (2, 2, 7), (4,), (1, 1, 4, 4, 3))),
        *(np.full((4, 4, 3), value) for value in (NAN, -3.0, 1e6)),
        *(np.full((4, 4, 3), "x"), torch.zeros(3, 0, 4), torch.zeros(4, 4, dtype=torch.complex64)),
        *([], [PHOTO, PHOTO], [[PHOTO], [PHOTO]], Image.new("RGB", (0, 4)), Image.new("RGB", (20_000, 1))),
    ],
    "padding": ["sideways", 3, [True]],
    "max_length": [0, "ten", 2.5],
    "return_tensors": ["tf", 3],
}


@pytest.mark.parametrize(("argument", "value"), cases(READING))
def test_a_reading_that_is_asked_for_wrongly(argument, value, processor):
    text = {"text": SLOT, "images": PHOTO} if argument == "images" else {"text": "x"}
    with pytest.raises(ValueError, match=f"[`']{argument}[`']|image 0") as error:
        processor(**{**text, argument: value})
    assert len(str(error.value)) < 400


ODD_IMAGES = {
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "20,000 pixels": Image.new("L", (20_000, 120)),
    "CMYK": PHOTO.convert("CMYK"),
    "palette": PHOTO.quantize(16),
    "two colours": PHOTO.convert("1"),
    "alpha": PHOTO.convert("RGBA"),
    "grey and alpha": PHOTO.convert("LA"),
    "YCbCr": PHOTO.convert("YCbCr"),
    "Lab": PHOTO.convert("LAB"),
    "HSV": PHOTO.convert("HSV"),
    "16 bits": Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 256),
    "floats": Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)),
    "GIF": file(PHOTO, "GIF"),
    "channels first": torch.rand(3, 20, 30),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_read(name, processor):
    image = ODD_IMAGES[name]
    batch = processor(text=SLOT, images=image, return_tensors="pt")
    assert batch["pixel_values"].isfinite().all() and len(batch["pixel_values"]) == batch["image_grid_thw"].prod()
    assert (batch["token_type_ids"] == 1).sum() == batch["image_grid_thw"].prod() // 4
    drawn = processor.preprocess_vae_image(image)
    assert drawn.shape[0] == 3 and -1 <= drawn.min() and drawn.max() <= 1


ODD_CALLS = [
    {"prompt": ""},
    {"prompt": ["", "x"], "latents": noise(2)},
    {"prompt": ("x",), "negative_prompt": ("",)},
    {"height": 16, "width": 16, "latents": noise()[..., :1, :1]},
    {"num_inference_steps": np.int64(1), "guidance_scale": np.float32(2)},
    {"sigmas": np.array([1.0, 0.5]), "generator": seeded(1)},
    {"sigmas": torch.tensor([0.7]), "guidance_scale": 0},
    {"prompt": "x" * 400},
    {"prompt": "<|im_end|>", "negative_prompt": "<|vision_pad|>", "system_prompt": "<|im_start|>"},  # are text here
    {"guidance_interval": [0.5, 0.5], "latents": noise().double()},
    {"attention_kwargs": {}, "callback_on_step_end_tensor_inputs": None},
]


@pytest.mark.parametrize("asked", ODD_CALLS, ids=range(len(ODD_CALLS)))
def test_an_odd_call_draws(asked, pipe):
    images = pipe(**{"prompt": "a stone", "num_inference_steps": 1, "output_type": "latent", **asked}).images
    assert images.isfinite().all() and images.dtype == torch.float32


def test_there_are_two_hundred():
    assert sum(len(cases(table)) for table in (DRAWING, READING)) + len(ODD_IMAGES) + len(ODD_CALLS) >= 200
