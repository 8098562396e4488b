"""A repository as a pipeline that answers and draws."""

import torch
from diffusers import DiffusionPipeline


def load_pipeline(
    repository: str, revision: str | None = None, device: str | None = None, dtype: str | None = None
) -> DiffusionPipeline:
    """
    Args:
        repository (`str`): a folder or a Hub id, whose code is run.
        revision (`str`, *optional*): a branch, tag or commit of the latter.
        device (`str`, *optional*): by default a GPU, if there is one.
        dtype (`str`, *optional*): of the weights, as torch names it; by default bfloat16 on a GPU, else float32.

    Raises:
        OSError, ValueError: if there is no such repository, or it cannot be loaded.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"`dtype` must be a type of torch such as 'bfloat16', got {dtype!r}.")
    pipe = DiffusionPipeline.from_pretrained(
        repository, revision=revision, dtype=getattr(torch, dtype), trust_remote_code=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


__all__ = ["load_pipeline"]
