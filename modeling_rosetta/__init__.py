"""Rosetta on the Hugging Face stack: what goes to the Hub with the weights."""

from .configuration_rosetta import RosettaConfig
from .modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaModel, RosettaPreTrainedModel


__all__ = [
    "RosettaConfig",
    "RosettaForCausalLMAndImageGeneration",
    "RosettaModel",
    "RosettaPreTrainedModel",
]
