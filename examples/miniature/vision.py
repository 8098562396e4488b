"""A small Qwen3-VL vision tower, and the image processor that feeds it."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from .digits import IMAGE_SIZE
from .progress import Progress


NUM_STEPS = 100
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
PATCHES = 4


def image_processor(image_size: int = IMAGE_SIZE) -> Qwen2VLImageProcessorPil:
    """Every image becomes 16 x 16 pixels, or another size: 4 x 4 patches, which the tower merges into 2 x 2 tokens."""
    return Qwen2VLImageProcessorPil(
        patch_size=image_size // PATCHES,
        size={"shortest_edge": image_size**2, "longest_edge": image_size**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def train_vision_tower(
    images: list[Image.Image],
    labels: torch.Tensor,
    out_hidden_size: int,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
) -> Qwen3VLVisionModel:
    """
    Pre-trains a vision tower by supervised classification of `images`, which stands in for the image-text training
    of Qwen3-VL's: a linear classifier reads the mean of its merged and DeepStack features. Afterwards the projectors
    (`linear_fc2`) to the language model's width, `out_hidden_size`, are new, as they are in the paper, and the rest is
    frozen.

    Args:
        images: N square images of one size to train on, and no others.
        labels (`torch.LongTensor` of shape `(N,)`)
    """
    torch.manual_seed(seed)
    processor = image_processor(images[0].width)
    config = Qwen3VLVisionConfig(
        depth=2,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        patch_size=processor.patch_size,
        num_position_embeddings=PATCHES**2,
        deepstack_visual_indexes=[0],
        out_hidden_size=out_hidden_size,
    )
    tower = Qwen3VLVisionModel._from_config(config)
    classifier = nn.Linear(out_hidden_size, int(labels.max()) + 1)
    inputs = processor(images, return_tensors="pt")
    pixel_values = inputs["pixel_values"].unflatten(0, (len(images), -1))
    optimizer = torch.optim.AdamW([*tower.parameters(), *classifier.parameters()], lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    progress = Progress("ViT", num_steps)
    for step in range(1, num_steps + 1):
        batch = torch.randint(len(images), (BATCH_SIZE,))
        features = tower(pixel_values[batch].flatten(0, 1), grid_thw=inputs["image_grid_thw"][batch])
        tokens = features.pooler_output + sum(features.deepstack_features)
        loss = F.cross_entropy(classifier(tokens.unflatten(0, (BATCH_SIZE, -1)).mean(1)), labels[batch])
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress.show(step, {"loss": loss.item()})
    tower.eval().requires_grad_(False)
    for merger in (tower.merger, *tower.deepstack_merger_list):
        merger.linear_fc2.requires_grad_(True)
        nn.init.normal_(merger.linear_fc2.weight, std=config.initializer_range)
        nn.init.zeros_(merger.linear_fc2.bias)
    return tower
