"""Small files of records, and a tiny processor and model that train on them."""

import io
import json
from pathlib import Path

import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from diffusers import AutoencoderKLFlux2
from PIL import Image
from tiny_training import SIZES
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, RosettaProcessor


TOOLS_OF_FUZZ = str(Path(__file__).parents[2] / "benchmarks")
TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny_tokenizer"  # a token for each character


def file_processor() -> RosettaProcessor:
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 16 * 16})
    return RosettaProcessor(images, AutoTokenizer.from_pretrained(TOKENIZER), base_size=64)


def file_model(processor: RosettaProcessor) -> RosettaForCausalLMAndImageGeneration:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(processor.tokenizer),
        "image_token_id": processor.image_token_id,
        "vision_start_token_id": processor.vision_start_token_id,
        "vision_end_token_id": processor.vision_end_token_id,
    }
    model = RosettaForCausalLMAndImageGeneration(RosettaConfig(**{**SIZES, **sizes}))
    model.model.visual.requires_grad_(False)
    return model


def file_vae() -> AutoencoderKLFlux2:
    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def write_drawings(file: Path, numbers: range) -> str:
    """Captions "0", "1", ... and pictures."""
    features = Features({"text": Value("string"), "image": ImageColumn()})
    rows = [{"text": f"{i}", "image": {"bytes": picture(i), "path": None}} for i in numbers]
    Dataset.from_list(rows, features=features).to_parquet(file)
    return str(file)


def picture(number: int, width: int = 16, height: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (number % 256, 7 * number % 256, 100)).save(file, "PNG")
    return file.getvalue()


def text(number: int) -> str:
    return f"text {number} " + "la" * (number % 9)


def conversation(number: int) -> list[dict]:
    return [
        {"from": "human", "value": f"<image>\nwhat is {number}?"},
        {"from": "gpt", "value": f"it is {number}"},
    ]


def write_texts(folder: Path, number: int, files: int = 1) -> Path:
    """Parquet files of texts "text 0", "text 1", ..."""
    for file in range(files):
        part = [text(i) for i in range(file * number // files, (file + 1) * number // files)]
        Dataset.from_dict({"text": part}).to_parquet(folder / f"texts-{file}.parquet")
    return folder


def write_questions(folder: Path, number: int) -> Path:
    """Lines of JSON with conversations about images beside them."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(number):
        (folder / "images" / f"{i}.png").write_bytes(picture(i))
        lines.append(json.dumps({"image": f"images/{i}.png", "conversations": conversation(i)}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl"
