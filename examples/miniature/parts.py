"""What a real run takes from elsewhere: text, a tokenizer, a dense model, a ViT and a VAE, small and made here."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from modeling_rosetta import RosettaPipeline, RosettaProcessor, encode_images

from .classifier import DigitClassifier
from .conversations import all_phrases, drawing, question, sums
from .digits import IMAGE_SIZE, Digits, load_digits
from .english import English, load_english
from .evaluation import drawing_accuracy, question_accuracy
from .language_model import pack_text, train_language_model
from .tokenizer import train_tokenizer
from .vae import train_vae
from .vision import image_processor, train_vision_tower


VIT = {
    "name": "vit",
    "embeds_from": "pixel_values",
    "expert_pool": "vit",
    "attention_stream": "shared",
    "shared_expert": "global",
}
VAE = {**VIT, "name": "vae", "embeds_from": "noisy_latents", "expert_pool": "vae"}
PROMPT_DROPOUT = 0.1


@dataclass
class CommonParts:
    """The text, split, the latents of the pictures to train on, and the trained parts; the ViT and the VAE are frozen
    from then on."""

    english: English
    train_rows: torch.Tensor
    held_out_rows: torch.Tensor
    latents: torch.Tensor
    processor: RosettaProcessor
    dense: Qwen3ForCausalLM
    vision_tower: Qwen3VLVisionModel
    vae: AutoencoderKLFlux2

    def token_ids(self) -> dict[str, int]:
        """What the configuration says of the tokenizer."""
        names = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
        return {name: getattr(self.processor, name) for name in names}


@dataclass
class Parts(CommonParts):
    """The same with the digits, split, and their judge."""

    train_digits: Digits
    held_out_digits: Digits
    classifier: DigitClassifier

    def tasks(self) -> dict[str, Callable[[random.Random], dict]]:
        return digit_tasks(self.processor, self.train_rows, self.train_digits, self.latents)

    def held_out_drawings(self) -> list[dict]:
        """A training sample for each held-out digit, always the same."""
        latents, choose = encode_images(self.vae, self.held_out_digits.pixels()), random.Random(0)
        conversations = [drawing(*pair, choose) for pair in zip(latents, self.held_out_digits.labels, strict=True)]
        return [self.processor.training_sample(conversation) for conversation in conversations]

    def skills(self, pipeline: RosettaPipeline) -> dict[str, float]:
        """Shares of questions about held-out digits answered right, and of drawings recognised."""
        return {
            "questions": question_accuracy(pipeline.transformer, self.processor, self.held_out_digits),
            "drawings": drawing_accuracy(pipeline, self.classifier),
        }


def make_parts(seed: int) -> Parts:
    """Makes them all, in about a minute."""
    english = load_english()
    train_digits, held_out_digits = load_digits()
    tokenizer = train_tokenizer([*english.train, *all_phrases()])
    train_rows, held_out_rows = (pack_text(tokenizer, text) for text in (english.train, english.held_out))
    print(f"English: {len(train_rows)} rows to train on, {len(held_out_rows)} held out, sha256 {english.sha256}")
    dense = train_language_model(tokenizer, torch.cat([train_rows, pack_text(tokenizer, sums())]), seed)
    labels = torch.from_numpy(train_digits.labels)
    vision_tower = train_vision_tower(train_digits.images, labels, dense.config.hidden_size, seed)
    vae = train_vae(train_digits.pixels(), seed)
    return Parts(
        english=english,
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        train_digits=train_digits,
        held_out_digits=held_out_digits,
        latents=encode_images(vae, train_digits.pixels()),
        processor=RosettaProcessor(image_processor(), tokenizer, base_size=IMAGE_SIZE, latent_patch_size=4),
        dense=dense,
        vision_tower=vision_tower,
        vae=vae,
        classifier=DigitClassifier(train_digits),
    )


def digit_tasks(
    processor: RosettaProcessor, train_rows: torch.Tensor, digits: Digits, latents: torch.Tensor
) -> dict[str, Callable[[random.Random], dict]]:
    """A function for each task, LM, MMU and T2I, that makes a sample of it for a [`~.mixture.Mixture`]."""
    made: dict[tuple[int, str], dict] = {}  # each picture is spoken of in ten ways only

    def once(i: int, text: str, conversation: list[dict]) -> dict:
        if (i, text) not in made:
            made[i, text] = processor.training_sample(conversation)
        return made[i, text]

    def see(choose: random.Random) -> dict:
        i = choose.randrange(len(digits.images))
        conversation = question(digits.images[i], digits.labels[i], choose)
        return once(i, conversation[0]["content"][1]["text"], conversation)

    def paint(choose: random.Random) -> dict:
        i = choose.randrange(len(latents))
        conversation = drawing(latents[i], digits.labels[i], choose)
        sample = once(i, conversation[0]["content"], conversation)
        return processor.drop_prompt(sample) if choose.random() < PROMPT_DROPOUT else sample

    return {"LM": reading(train_rows), "MMU": see, "T2I": paint}


def reading(rows: torch.Tensor) -> Callable[[random.Random], dict]:
    """Makes samples of packed text (N, 128)."""
    passages = rows.view(-1, 64)  # about as long as the other samples

    def read(choose: random.Random) -> dict:
        row = passages[choose.randrange(len(passages))]
        return {"input_ids": row, "token_type_ids": torch.zeros_like(row), "labels": row}

    return read
