"""A model to evaluate, by name."""

import torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.utils import cached_file

from modeling_rosetta import RosettaPipeline

from .model_under_test import ModelUnderTest


def load_pipeline(
    name: str, device: str | torch.device = "cpu", dtype: str = "auto", revision: str | None = None
) -> DiffusionPipeline:
    """
    A repository's pipeline; of one without a VAE, that which answers alone.

    Args:
        name (`str`): a folder or Hub id, whose code is run.
        device (`str` or `torch.device`)
        dtype (`str`, defaults to `"auto"`): of the weights, by default as they were saved.
        revision (`str`, *optional*)

    Raises:
        ValueError: if it cannot be loaded.
    """
    torch_dtype = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if not (torch_dtype == "auto" or isinstance(torch_dtype, torch.dtype)):
        raise ValueError(f"`dtype` must be 'auto' or a type of torch such as 'bfloat16', got {dtype!r}.")
    arguments = {"revision": revision, "trust_remote_code": True}
    try:
        # Of diffusers' own loading, "auto" is float32.
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch_dtype, **arguments)
        if cached_file(name, "model_index.json", revision=revision, _raise_exceptions_for_missing_entries=False):
            pipe = DiffusionPipeline.from_pretrained(name, transformer=model, **arguments)
        else:
            pipe = RosettaPipeline(model, None, None, AutoProcessor.from_pretrained(name, **arguments))
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return pipe.to(device)


def load_model_under_test(name: str, *args, **kwargs) -> ModelUnderTest:
    """As [`load_pipeline`]."""
    return ModelUnderTest(load_pipeline(name, *args, **kwargs))


__all__ = ["load_model_under_test", "load_pipeline"]
