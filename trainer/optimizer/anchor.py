"""The anchor: a pull of the weights to where a stage began, as strong as an earlier stage needed each of them."""

import logging
import math
import os
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from .earlier_state import find_optimizer_state, second_moments
from .whole_tensors import sharded_as, whole_tensors


logger = logging.getLogger(__name__)

FILE_NAME = "anchor.safetensors"
STORAGES = ("float32", "bfloat16", "cpu")
SUFFIX = ".safetensors"
SLICE_NUMEL, CPU_SLICE_NUMEL = 2**20, 2**19  # the latter's pieces stay in the processor's cache
SMALL_NUMEL = 2**16  # up to which calls take longer than what they do


def find_importances(source: str | os.PathLike) -> Path:
    """
    The file or folder in which [`Anchor`] finds importances.

    Raises:
        ValueError: if there is none.
    """
    if Path(source).suffix != SUFFIX:
        return find_optimizer_state(source, "anchor_importance_from")
    if not Path(source).is_file():
        raise ValueError(f"`anchor_importance_from` must be a checkpoint or a file of importances, got '{source}'.")
    return Path(source)


class Anchor:
    r"""
    After each update at the rate \\(\eta\\) it takes the proximal step of
    \\(\frac{\lambda f}{2}(\theta-\theta_0)^2\\), elementwise:

    $$\theta \leftarrow \theta + \frac{\eta\lambda f}{1+\eta\lambda f}\,(\theta_0 - \theta)$$

    where \\(\theta_0\\) are the weights at the start of the stage, \\(\lambda\\) the strength, and \\(f\\) the
    importance of each weight: the second moment that the earlier stage's Adam had of its gradient. Being proximal it
    never overshoots, and being outside of the gradient it is not divided by Adam's own second moment, as weight decay
    is not in AdamW. Parameters that the earlier stage did not have, or in another shape, are not pulled, nor is one
    that a step leaves alone.

    **What a strength means.** The moments are corrected for their bias and divided by their mean over all weights that
    are pulled: the scale of the loss, the batch size and the mean factor of clipping cancel, as far as they act on all
    weights alike. An importance of 1 is that of the average weight. The rate is the group's, so a weight comes to rest
    where Adam's step, which is of the size of the rate, and the pull are equal, whatever the schedule.

    Sources: elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796) with Adam's second moment for the
    Fisher diagonal (Li et al., "Fishers for Free?", arXiv 2507.18807). An optimizer that carries precisions from stage
    to stage is CoVON (Paul et al., arXiv 2606.24007). With equal importances it is L2-SP (Li et al., arXiv
    1802.01483).

    Args:
        strength (`float`): at least 0; 0 changes nothing, to the bit, and `inf` holds the weights at the start.
        importance_from (`str` or `os.PathLike`): a checkpoint of the earlier stage, in any of the Trainer's formats,
            or a `.safetensors` file of importances by the names of parameters, such as a Fisher diagonal.
        parameters (`str`, *optional*): a regular expression that is searched for in the names of the parameters to
            pull; by default all.
        storage (`str`): `"float32"` keeps the start and the importances beside the weights, 8 bytes each;
            `"bfloat16"` rounds the importances, 6 bytes; `"cpu"` keeps both on the CPU, and brings them a parameter at
            a time.
    """

    def __init__(
        self,
        strength: float,
        importance_from: str | os.PathLike,
        parameters: str | None = None,
        storage: str = "float32",
    ):
        self.strength, self.importance_from = strength, importance_from
        self.parameters, self.storage = parameters, storage
        self._hook = None

    def start(self, optimizer: torch.optim.Optimizer, checkpoint: str | os.PathLike | None = None):
        """
        Begins to pull the parameters of an optimizer, which may be sharded, to what they are now, or goes on with what
        a checkpoint has.

        Args:
            optimizer (`torch.optim.Optimizer`): with named parameters.
            checkpoint (`str` or `os.PathLike`, *optional*)

        Raises:
            ValueError: if the parameters have no names, none of them is in the earlier stage, or the checkpoint has no
                anchor.
        """
        if not all("param_names" in group for group in optimizer.param_groups):
            raise ValueError("`optimizer` must have named parameters to be anchored.")
        named = {
            name: param
            for group in optimizer.param_groups
            for name, param in zip(group["param_names"], group["params"], strict=True)
            if self.parameters is None or re.search(self.parameters, name)
        }
        if checkpoint is None:
            importances = _relative(self._importances(named))
            starts = {name: named[name].detach().clone() for name in importances}
            left_alone = [name for name in named if name not in importances]
            logger.warning("Anchored: %d parameters. Not anchored: %s.", len(importances), left_alone or "none")
        else:
            starts, importances = _load(Path(checkpoint, FILE_NAME), named)
        self._anchored = {named[name]: name for name in starts}
        self._starts = {name: self._stored(start) for name, start in starts.items()}
        self._importances_of = {
            name: self._stored(importance, torch.bfloat16 if self.storage == "bfloat16" else None)
            for name, importance in importances.items()
        }
        self.stop()
        self._hook = optimizer.register_step_post_hook(self._pull)

    def stop(self):
        """Lets go of the optimizer."""
        if self._hook is not None:
            self._hook.remove()

    def save(self, folder: str, is_main_process: bool):
        """Writes starts and importances into a checkpoint. All ranks must call it."""
        tensors = {}
        for param, name in self._anchored.items():
            tensors[f"start.{name}"] = _part_of(param, self._starts[name])
            tensors[f"importance.{name}"] = _part_of(param, self._importances_of[name])
        wholes = whole_tensors(tensors, is_main_process)
        if is_main_process:
            save_file(wholes, Path(folder, FILE_NAME))

    @torch.no_grad()
    def _pull(self, optimizer: torch.optim.Optimizer, args, kwargs):
        if self.strength == 0:
            return
        # A gradient scaler, or whoever else sets it, has had the update skipped, on the device.
        taken = 1 - getattr(optimizer, "found_inf", 0.0)
        for group in optimizer.param_groups:
            rate, small = group["lr"] * taken, []
            for param in group["params"]:
                name = self._anchored.get(param)
                if name is None or param.grad is None:
                    continue
                pulled = _local(param), self._starts[name], self._importances_of[name]
                if pulled[0].numel() <= SMALL_NUMEL:
                    small.append(pulled)
                else:
                    _pull_to(*pulled, self.strength, rate)
            if small:
                weights, starts, importances = zip(*small, strict=True)
                _pull_all_to(weights, starts, importances, self.strength, rate)

    def _importances(self, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        source = find_importances(self.importance_from)
        importances = _read(source, "", named) if source.suffix == SUFFIX else second_moments(source, named)
        if not importances:
            raise ValueError(f"`anchor_importance_from`: {source} has nothing of a parameter that is to be anchored.")
        return importances

    def _stored(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = _local(tensor).to(dtype=dtype, device="cpu" if self.storage == "cpu" else None)
        return tensor.pin_memory() if self.storage == "cpu" and torch.cuda.is_available() else tensor


def _pull_to(weight: torch.Tensor, start: torch.Tensor, importance: torch.Tensor, strength: float, rate):
    pieces = [(tensor,) for tensor in (weight, start, importance)]
    if weight.is_contiguous():
        size = CPU_SLICE_NUMEL if weight.device.type == "cpu" else SLICE_NUMEL
        pieces = [tensor.view(-1).split(size) for (tensor,) in pieces]
    pulls, wholes = (torch.empty_like(pieces[0][0]) for _ in range(2))  # for all pieces: memory anew costs its time
    for weight, start, importance in zip(*pieces, strict=True):
        start = start.to(weight.device, non_blocking=True)
        if math.isinf(strength):
            weight.copy_(start)
            continue
        pull, whole = pulls[: len(weight)], wholes[: len(weight)]
        if (importance.dtype, importance.device) != (weight.dtype, weight.device):
            importance = pull.copy_(importance, non_blocking=True)
        torch.mul(importance, strength * rate, out=pull)
        weight.lerp_(start, pull.div_(torch.add(pull, 1, out=whole)))


def _pull_all_to(weights: tuple, starts: tuple, importances: tuple, strength: float, rate):
    """[`_pull_to`] of many small tensors at once."""
    starts = [start.to(weight.device, non_blocking=True) for weight, start in zip(weights, starts, strict=True)]
    if math.isinf(strength):
        torch._foreach_copy_(weights, starts)
        return
    importances = [
        importance.to(weight.device, weight.dtype, non_blocking=True)
        for weight, importance in zip(weights, importances, strict=True)
    ]
    pulls = torch._foreach_mul(importances, strength * rate)
    torch._foreach_div_(pulls, torch._foreach_add(pulls, 1))
    torch._foreach_lerp_(weights, starts, pulls)


def _relative(importances: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Divided by the mean over all elements."""
    total = sum(float(_whole(importance.sum(dtype=torch.float64))) for importance in importances.values())
    mean = total / sum(importance.numel() for importance in importances.values())
    if not (math.isfinite(mean) and mean > 0):
        raise ValueError(f"`anchor_importance_from`: the mean of the importances must be above 0, got {mean}.")
    return {name: importance / mean for name, importance in importances.items()}


def _load(file: Path, named: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    if not file.exists():
        raise ValueError(f"`anchor_strength`: the checkpoint has no anchor to go on with, {file} does not exist.")
    starts, importances = (_read(file, prefix, named) for prefix in ("start.", "importance."))
    return starts, importances


def _read(file: Path, prefix: str, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a file has, by `prefix` and name, of parameters of the same shape, sharded as these are."""
    with safe_open(file, framework="pt") as stored:
        found = {name: param for name, param in named.items() if f"{prefix}{name}" in stored.keys()}
        read = {name: (param, stored.get_tensor(f"{prefix}{name}")) for name, param in found.items()}
    return {
        name: sharded_as(param, tensor).to(param.device, param.dtype)
        for name, (param, tensor) in read.items()
        if tensor.shape == param.shape
    }


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part_of(param: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """What lies on this rank of something that is sharded as `param` is, as a part of it."""
    if not isinstance(param, DTensor):
        return local
    local = local.to(param.device)
    layout = {"shape": param.shape, "stride": param.stride()}
    return DTensor.from_local(local, param.device_mesh, param.placements, run_check=False, **layout)


__all__ = ["STORAGES", "Anchor", "find_importances"]
