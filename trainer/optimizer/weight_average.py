"""Exponential moving average (EMA) of the trained weights."""

from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from .diff_lr import clean_parameter_name
from .whole_tensors import sharded_as, whole_tensors


FILE_NAME = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """
    The average over the steps of a run, in fp32: after the n-th it moves by `1 - min(decay, n / (9 + n))` towards the
    weights, so that the first steps are soon forgotten. Each rank averages the shards that it has of the weights.

    Args:
        decay (`float`): in [0, 1).
    """

    def __init__(self, decay: float):
        self.decay = decay

    def start(self, model: nn.Module, checkpoint: str | None):
        """
        Starts at the weights of `model`, which may be sharded, or goes on with the average in a checkpoint.

        Raises:
            ValueError: if the checkpoint has no average, or one of other parameters.
        """
        trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        self.names = [clean_parameter_name(name) for name, _ in trained]
        self.parameters = [param for _, param in trained]
        self.ema = EMAModel(self.parameters, decay=self.decay, foreach=True)
        self.ema.to(dtype=torch.float32)
        if checkpoint is not None:
            self._load(Path(checkpoint, FILE_NAME))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.ema.step(self.parameters)

    def full_tensors(self, is_main_process: bool) -> dict[str, torch.Tensor]:
        """The averages by the names of their parameters, on the CPU, on the main process; the other ranks must call it
        too, and get nothing."""
        return whole_tensors(dict(zip(self.names, self.ema.shadow_params, strict=True)), is_main_process)

    def averaged_state_dict(self, model: nn.Module, averages: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict of a whole model with `averages`, from [`~WeightAverage.full_tensors`], in their places."""
        average_of = {
            param: averages[clean_parameter_name(name)]
            for name, param in model.named_parameters()
            if clean_parameter_name(name) in averages
        }
        state_dict = model.state_dict()
        for name, param in model.named_parameters(remove_duplicate=False):  # tied weights under each name
            if param in average_of:
                state_dict[name] = average_of[param].to(param.dtype)
        return state_dict

    def save(self, folder: str, is_main_process: bool):
        """Writes the average into a checkpoint. All ranks must call it."""
        averages = self.full_tensors(is_main_process)
        if is_main_process:
            save_file(averages, Path(folder, FILE_NAME), metadata={"steps": str(self.ema.optimization_step)})

    def _load(self, file: Path):
        if not file.exists():
            raise ValueError(f"`ema_decay`: the checkpoint has no average to go on with, {file} does not exist.")
        with safe_open(file, framework="pt") as stored:
            if set(stored.keys()) != set(self.names):
                differing = sorted(set(stored.keys()) ^ set(self.names))
                raise ValueError(f"`ema_decay`: {file} is of other parameters, they differ by {differing}.")
            self.ema.optimization_step = int(stored.metadata()["steps"])
            for name, average in zip(self.names, self.ema.shadow_params, strict=True):
                average.copy_(sharded_as(average, stored.get_tensor(name)))


__all__ = ["WeightAverage"]
