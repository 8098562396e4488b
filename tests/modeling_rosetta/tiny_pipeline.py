"""A pipeline of tiny random parts that draws images of 64 x 64 pixels, 4 x 4 tokens."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_rosetta.pipeline import RosettaPipeline
from modeling_rosetta.processing_rosetta import RosettaProcessor
from tests.conftest import tiny_model


TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny_tokenizer"


def tiny_processor(latent_prefix: bool = True) -> RosettaProcessor:
    """`latent_prefix`: with a timestep token before the image, as in the authors' inference."""
    return RosettaProcessor(
        Qwen2VLImageProcessorPil(patch_size=16),
        AutoTokenizer.from_pretrained(TOKENIZER),
        base_size=64,
        latent_prefix=latent_prefix,
    )


def tiny_vae() -> AutoencoderKLFlux2:
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def tiny_pipeline(architecture: str = "rosetta", latent_prefix: bool = True, **config) -> RosettaPipeline:
    processor = tiny_processor(latent_prefix)
    transformer = tiny_model(
        architecture,
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
        timestep_token_id=processor.timestep_token_id,
        **config,
    )
    pipe = RosettaPipeline(transformer, tiny_vae(), FlowMatchEulerDiscreteScheduler(), processor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(num_images: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_images, 8, 4, 4, generator=torch.Generator().manual_seed(seed))
