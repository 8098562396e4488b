"""Rosetta on the Hugging Face stack: what goes to the Hub with the weights."""

from .composition_rosetta import mount, own_modules, resize_experts, unmount
from .configuration_rosetta import RosettaConfig
from .latent_codec_rosetta import decode_latents, encode_images
from .modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaModel, RosettaPreTrainedModel
from .pipeline import RosettaPipeline
from .processing_rosetta import RosettaProcessor
from .quantization_rosetta import RosettaQuantizationConfig
from .upcycling_rosetta import text_config_from_dense, upcycle, upcycling_rules


__all__ = [
    "RosettaConfig",
    "RosettaForCausalLMAndImageGeneration",
    "RosettaModel",
    "RosettaPipeline",
    "RosettaPreTrainedModel",
    "RosettaProcessor",
    "RosettaQuantizationConfig",
    "decode_latents",
    "encode_images",
    "mount",
    "own_modules",
    "resize_experts",
    "text_config_from_dense",
    "unmount",
    "upcycle",
    "upcycling_rules",
]
