"""Tensors that ranks have parts of, whole on one of them and in parts again."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole_tensors(tensors: dict[str, torch.Tensor], is_main_process: bool) -> dict[str, torch.Tensor]:
    """Whole copies on the CPU, on the main process; the other ranks must call it too, and get nothing."""
    wholes = {}
    for name, tensor in tensors.items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main_process:
            wholes[name] = tensor.cpu().contiguous()
    return wholes


def sharded_as(like: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every rank has, as parts of it lie in `like`."""
    if not isinstance(like, DTensor):
        return whole
    # Every rank has read the file: none needs to send the others their part.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


__all__ = ["sharded_as", "whole_tensors"]
