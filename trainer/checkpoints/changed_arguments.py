"""What a resumed run was given anew takes effect: transformers goes on with the hyperparameters of the checkpoint."""

import torch
from torch.optim.lr_scheduler import LambdaLR


RATES = ("lr", "initial_lr")


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Of each parameter group, all but its parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def take_up(optimizer: torch.optim.Optimizer, scheduler, asked: list[dict]):
    """
    Sets the hyperparameters of a loaded optimizer, and its rates to those of `scheduler` at the step that it has been
    loaded to; a schedule that has its rates as a state goes on with them. Where nothing was changed, nothing changes,
    to the bit.

    Args:
        optimizer ([`~torch.optim.Optimizer`])
        scheduler ([`~torch.optim.lr_scheduler.LRScheduler`])
        asked (`list[dict]`): the [`hyperparameters`] before loading, when `scheduler` was new.
    """
    if not isinstance(scheduler, LambdaLR):
        for group, hyperparameters in zip(optimizer.param_groups, asked, strict=True):
            group.update({name: value for name, value in hyperparameters.items() if name not in RATES})
        return
    scheduler.base_lrs = [group["initial_lr"] for group in asked]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, hyperparameters, rate in zip(optimizer.param_groups, asked, rates, strict=True):
        group.update({**hyperparameters, "lr": rate})
    scheduler._last_lr = rates


__all__ = ["hyperparameters", "take_up"]
