"""The tiny model, records and Trainer of `tiny_training`, for the tests of the trainer."""

import pytest
import tiny_training
import torch

from modeling_rosetta import RosettaConfig
from trainer import MAOPAdamW


@pytest.fixture
def config():
    return lambda variant=RosettaConfig, **changes: variant(**{**tiny_training.SIZES, **changes})


@pytest.fixture
def tiny_model():
    return tiny_training.tiny_model


@pytest.fixture
def records():
    """`number` records; with `noisy`, images come as noisy latents and velocities instead of clean latents."""
    return lambda number, noisy=False: [tiny_training.record(index, noisy) for index in range(number)]


@pytest.fixture
def collate():
    return tiny_training.collate


@pytest.fixture
def trainer_of(tmp_path):
    """A [`RosettaTrainer`] on the CPU that is quiet and goes through the records in order."""

    def build(model, train_dataset=None, eval_dataset=None, output_dir=tmp_path, **arguments):
        return tiny_training.tiny_trainer(model, output_dir, train_dataset, eval_dataset, **arguments)

    return build


@pytest.fixture
def maop_optimizer():
    """MAOPAdamW over parameters with the gradients and momenta of `pairs`."""

    def build(pairs, names=None, maop=True, **arguments):
        params = [torch.nn.Parameter(gradient.detach().clone()) for gradient, _ in pairs]
        group = {"params": list(zip(names, params, strict=True)) if names else params, "maop": maop}
        optimizer = MAOPAdamW([group], **arguments)
        for param, (gradient, momentum) in zip(params, pairs, strict=True):
            param.grad = gradient.clone()
            optimizer.state[param] = {
                "step": torch.tensor(1.0),
                "exp_avg": momentum.clone(),
                "exp_avg_sq": torch.ones_like(param),
            }
        return optimizer

    return build


@pytest.fixture
def maop_project(maop_optimizer):
    """The gradients of `pairs` as MAOPAdamW gives them to AdamW."""

    def project(pairs, **arguments):
        optimizer = maop_optimizer(pairs, **arguments)
        optimizer._project()
        return [param.grad for param in optimizer.param_groups[0]["params"]]

    return project
