"""Tiny random models of the classes that judge drawings, saved as their repositories are."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "yes", "no", "?", "a", "red", "book", "blue", "mug", "photo", "of"]
DEC, END = len(WORDS), len(WORDS) + 1  # BLIP's [DEC] and [ENC]; CLIP has its end where BLIP has the latter
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(folder: Path, last: str):
    """Of words between `[CLS]` and `last`."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, "[DEC]", "[END]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"[CLS] $A {last}", special_tokens=[("[CLS]", 2), (last, vocabulary[last])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def save_clip(folder: Path):
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    text = {**SIZES, "vocab_size": END + 1, "max_position_embeddings": 12, "eos_token_id": END, "bos_token_id": 2}
    both = {"hidden_act": "gelu"}
    config = CLIPConfig(text_config=text | both, vision_config=vision | both, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    size, crop = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    save_tokenizer(folder, "[END]")


def save_blip(folder: Path):
    torch.manual_seed(1)
    text = {**SIZES, "vocab_size": END + 1, "encoder_hidden_size": 16, "bos_token_id": DEC, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config={**SIZES, "image_size": 360, "patch_size": 120})
    config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipImageProcessorPil().save_pretrained(folder)
    save_tokenizer(folder, "[SEP]")


def save_detector(folder: Path):
    torch.manual_seed(2)
    config = YolosConfig(
        **SIZES,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        id2label={0: "book", 1: "mug", 2: "keyboard"},
        label2id={"book": 0, "mug": 1, "keyboard": 2},
        initializer_range=0.5,
    )
    model = YolosForObjectDetection(config)
    torch.nn.init.normal_(model.vit.embeddings.detection_tokens)  # zeros would all see the same
    model.save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32}).save_pretrained(folder)


class InceptionLayers(torch.nn.Module):
    """In place of Inception: averages of `[-1, 1]` pixels over tiles, to 5 features."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 9, 5)

    def forward(self, x):
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(x, [3, 3]).flatten(1))


class InceptionFile(torch.nn.Module):
    """As in the file that StyleGAN2-ADA publishes, the network is below `layers`."""

    def __init__(self):
        super().__init__()
        self.layers = InceptionLayers()

    def forward(self, x):
        return self.layers((x - 128) / 128)


def save_inception(file: Path) -> InceptionLayers:
    torch.manual_seed(3)
    network = InceptionFile().eval()
    torch.jit.save(torch.jit.script(network), str(file))
    return network.layers


def save_judges(folder: Path):
    for name, save in (("clip", save_clip), ("blip", save_blip), ("detector", save_detector)):
        save(folder / name)
    save_inception(folder / "inception.pt")


def named_judges(folder: Path) -> list[str]:
    """As the command is told them."""
    files = {"clip": "clip", "blip": "blip", "detector": "detector", "colors": "clip", "inception": "inception.pt"}
    return [f"{name}={folder / file}" for name, file in files.items()]
