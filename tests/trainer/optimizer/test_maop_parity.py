"""MAOP gives the authors' numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer import MAOPAdamW


FIXTURES = Path(__file__).parents[2] / "fixtures"
CASES = json.loads((FIXTURES / "maop.json").read_text())["cases"]
PAIRS = [name for name in CASES if "changed" in CASES[name]]


@pytest.fixture(scope="module")
def tensors():
    return load_file(FIXTURES / "maop.safetensors")


@pytest.mark.parametrize("case", PAIRS)
def test_projection(case, tensors, maop_project):
    gradient, momentum = tensors[f"{case}.g"], tensors[f"{case}.m"]
    (projected,) = maop_project([(gradient, momentum)])
    torch.testing.assert_close(projected, tensors[f"{case}.out"], rtol=1e-6, atol=1e-6 * gradient.abs().max().item())
    assert torch.equal(projected, gradient) != CASES[case]["changed"]


def test_four_steps_with_clipping(tensors):
    run = CASES["optseq"]
    prefix = "optseq.init."
    params = {
        name.removeprefix(prefix): torch.nn.Parameter(tensors[name].clone())
        for name in tensors
        if name.startswith(prefix)
    }
    shared = [param for name, param in params.items() if "shared_mlp" in name]
    rest = [param for name, param in params.items() if "shared_mlp" not in name]
    optimizer = MAOPAdamW(
        [{"params": shared, "maop": True}, {"params": rest}],
        lr=run["lr"],
        betas=run["betas"],
        eps=run["eps"],
        weight_decay=run["weight_decay"],
    )
    for step, norm in enumerate(run["grad_norms"]):
        for name, param in params.items():
            param.grad = tensors[f"optseq.{step}.grad_raw.{name}"].clone()
        torch.testing.assert_close(
            torch.nn.utils.clip_grad_norm_(params.values(), run["max_grad_norm"]).item(), norm, rtol=1e-6, atol=0
        )
        optimizer.step()
        for name, param in params.items():
            expected = (
                tensors[f"optseq.{step}.{kind}.{name}"] for kind in ("param", "exp_avg", "grad_after_clip_maop")
            )
            actual = (param.detach(), optimizer.state[param]["exp_avg"], param.grad)
            torch.testing.assert_close(tuple(actual), tuple(expected), rtol=1e-5, atol=1e-7)
