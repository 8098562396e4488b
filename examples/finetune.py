"""
Fine-tunes a released Rosetta on a folder of your images and their captions, so that it draws like them.

    accelerate launch examples/finetune.py --model owner/name --images my_images [--train lora] [--max_steps 500] [...]

The folder holds images with a `metadata.jsonl` of lines like {"file_name": "a.png", "text": "a red stone"}, or with a
text file of the same name beside each image. `--train`:

- `vae` (default): what serves drawing and nothing else, so that the model reads and sees as before, bit for bit;
- `full`: everything but the ViT and the VAE, at the paper's rates and under MAOP;
- `lora`: adapters on the attention, a small file of their own.

Then `DiffusionPipeline.from_pretrained("outputs/finetuned/model", trust_remote_code=True)` draws; after `lora` it is
the released pipeline, after `pipeline.transformer.load_adapter("outputs/finetuned/adapter")`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from diffusers import AutoencoderKLFlux2
from PIL import Image
from torch.utils.data import Dataset
from transformers import HfArgumentParser, set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))

from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaProcessor, encode_images  # noqa: E402
from trainer import (  # noqa: E402
    RosettaDataCollator,
    RosettaTrainer,
    RosettaTrainingArguments,
    train_backbone,
    train_token_types,
)
from trainer.checkpoints.sharding import unsharded_model  # noqa: E402
from trainer.stages.lora import lora_config  # noqa: E402
from trainer.stages.repository import save_repository_of  # noqa: E402


DEFAULTS = {
    "learning_rate": None,  # that of `LEARNING_RATES`
    "generation_learning_rate": 1e-4,
    "latent_projections_at_generation_rate": True,
    "output_dir": "outputs/finetuned",
    "max_steps": 500,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 20,
    "logging_steps": 10,
    "report_to": "none",
}
LEARNING_RATES = {"vae": 1e-4, "full": 1e-5, "lora": 1e-4}  # what serves drawing alone has the generative rate


@dataclass
class FineTuning:
    model: str = field(metadata={"help": "Folder or Hub id of a Rosetta that draws."})
    images: Path = field(metadata={"help": "Folder of images and captions."})
    train: str = field(default="vae", metadata={"help": "What is trained.", "choices": list(LEARNING_RATES)})
    caption_column: str = field(default="text", metadata={"help": "Column of the captions in `metadata.jsonl`."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Share of drawings without a prompt, for guidance."})
    lora_rank: int = 16


class CaptionedImages(Dataset):
    """Samples of images to draw. Each image is brought to its bucket's size and encoded once."""

    def __init__(self, captioned: list[tuple[Image.Image, str]], processor, vae, prompt_dropout: float):
        self.processor, self.prompt_dropout = processor, prompt_dropout
        self.captioned = [
            (encode_images(vae, processor.preprocess_vae_image(image)[None].to(vae.device))[0].cpu(), caption)
            for image, caption in captioned
        ]

    def __len__(self) -> int:
        return len(self.captioned)

    def __getitem__(self, index: int) -> dict:
        latents, caption = self.captioned[index]
        answer = {"role": "assistant", "content": [{"type": "latents", "latents": latents}]}
        sample = self.processor.training_sample([{"role": "user", "content": caption}, answer])
        return self.processor.drop_prompt(sample) if torch.rand(()) < self.prompt_dropout else sample


def load_images(folder: Path, caption_column: str) -> list[tuple[Image.Image, str]]:
    """The images of a folder with their captions; raises a `ValueError` that says what is missing."""
    if not folder.is_dir():
        raise ValueError(f"`images` must be a folder, '{folder}' is none.")
    if any(folder.glob("metadata.*")):
        records = load_dataset("imagefolder", data_dir=str(folder), split="train")
        if caption_column not in records.column_names:
            raise ValueError(f"`caption_column`: '{folder}' has the columns {records.column_names}.")
        captioned = [(record["image"], record[caption_column]) for record in records]
    else:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in Image.registered_extensions())
        if lacking := [file.name for file in files if not file.with_suffix(".txt").is_file()]:
            raise ValueError(f"`images`: no metadata.jsonl in '{folder}', and no text beside {lacking[0]}.")
        captioned = [(Image.open(file).convert("RGB"), file.with_suffix(".txt").read_text().strip()) for file in files]
    if not captioned or not all(caption for _, caption in captioned):
        raise ValueError(f"`images`: '{folder}' must hold images, each with a caption.")
    return captioned


def load(name: str) -> tuple[RosettaForCausalLMAndImageGeneration, RosettaProcessor, AutoencoderKLFlux2]:
    """The parts of a released Rosetta; raises a `ValueError` if it does not draw."""
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(name, dtype=torch.float32)
    if model.config.token_type_index("noisy_latents") is None:
        raise ValueError("It does not draw.")
    processor = RosettaProcessor.from_pretrained(name, trust_remote_code=True)
    return model, processor, AutoencoderKLFlux2.from_pretrained(name, subfolder="vae").eval()


def main(arguments: list[str] | None = None):
    parser = HfArgumentParser([FineTuning, RosettaTrainingArguments], allow_abbrev=False)
    parser.set_defaults(**DEFAULTS)
    options, training = parser.parse_args_into_dataclasses(arguments)
    if training.learning_rate is None:
        training.learning_rate = LEARNING_RATES[options.train]
    try:
        captioned = load_images(options.images, options.caption_column)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    try:
        model, processor, vae = load(options.model)
    except (OSError, ValueError) as error:
        raise SystemExit(f"`model`: '{options.model}' cannot be fine-tuned. {error}") from error
    set_seed(training.seed)
    if options.train == "lora":
        model.add_adapter(lora_config(model.config, r=options.lora_rank, lora_alpha=options.lora_rank))
    elif options.train == "vae":
        train_token_types(model, "vae")
    else:
        train_backbone(model)
    trainer = RosettaTrainer(
        model,
        training,
        train_dataset=CaptionedImages(captioned, processor, vae.to(training.device), options.prompt_dropout),
        data_collator=RosettaDataCollator(processor.tokenizer.pad_token_id),
        processing_class=processor,
    )
    trainer.train()

    output_dir = Path(training.output_dir)
    if options.train != "lora":
        save_repository_of(trainer, output_dir / "model", vae.cpu(), "fine-tuning", f"{len(captioned)} images")
    elif (adapted := unsharded_model(trainer.accelerator, trainer.model_wrapped)) is not None:
        adapted.save_pretrained(output_dir / "adapter")


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
