"""What the projection promises, over pairs of gradient and momentum that are hard on it, against float64."""

import pytest
import torch

from trainer.optimizer import maop


def _pair(seed: int, shape=(7, 9), gradient_scale=1.0, momentum_scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    gradient, momentum = (torch.randn(shape, generator=generator) for _ in range(2))
    if (gradient * momentum).sum() > 0:
        gradient = -gradient
    return gradient * gradient_scale, momentum * momentum_scale


def _nearly(direction: float):
    gradient, momentum = _pair(3)
    return direction * momentum + 1e-3 * gradient, momentum


CONFLICTS = {
    "matrix": _pair(0),
    "vector": _pair(1, (5,)),
    "scalar": _pair(2, ()),
    "fused experts": _pair(3, (3, 4, 6)),
    "wide": _pair(4, (1, 5000)),
    "small gradient": _pair(5, gradient_scale=1e-9),
    "large gradient": _pair(6, gradient_scale=1e9),
    "small momentum": _pair(7, momentum_scale=1e-4),
    "large momentum": _pair(8, momentum_scale=1e6),
    "opposite": (-_pair(9)[1], _pair(9)[1]),
    "nearly opposite": _nearly(-1.0),
    "one element": (torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])),
    "transposed": tuple(tensor.T for tensor in _pair(10)),
}
AGREEMENTS = {
    "matrix": (-_pair(0)[0], _pair(0)[1]),
    "same": (_pair(1)[1], _pair(1)[1]),
    "nearly same": _nearly(1.0),
    "orthogonal": (torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0])),
    "no momentum": (_pair(2)[0], torch.zeros(7, 9)),
    "tiny momentum": _pair(3, momentum_scale=1e-8),
    "no gradient": (torch.zeros(7, 9), _pair(4)[1]),
}
conflicts = pytest.mark.parametrize("pair", CONFLICTS.values(), ids=CONFLICTS)
agreements = pytest.mark.parametrize("pair", AGREEMENTS.values(), ids=AGREEMENTS)


def _dot(a, b):
    return (a.double() * b.double()).sum()


def _equation_4(gradient, momentum):
    gradient, momentum = gradient.double(), momentum.double()
    return gradient - _dot(gradient, momentum) / _dot(momentum, momentum) * momentum


def _assert_near(actual, expected, scale, tolerance=1e-6):
    assert (actual.double() - expected).norm() <= tolerance * scale.double().norm()


@conflicts
def test_is_the_equation(pair, maop_project):
    _assert_near(maop_project([pair])[0], _equation_4(*pair), scale=pair[0])


@conflicts
def test_nothing_opposes_the_momentum_afterwards(pair, maop_project):
    gradient, momentum = pair
    (projected,) = maop_project([pair])
    assert _dot(projected, momentum).abs() <= 1e-6 * gradient.double().norm() * momentum.double().norm()


@conflicts
def test_never_longer(pair, maop_project):
    assert maop_project([pair])[0].double().norm() <= pair[0].double().norm() * (1 + 1e-6)


@conflicts
def test_idempotent(pair, maop_project):
    (once,) = maop_project([pair])
    (twice,) = maop_project([(once, pair[1])])
    _assert_near(twice, once.double(), scale=pair[0])


@conflicts
def test_scales_with_the_gradient(pair, maop_project):
    (projected,) = maop_project([pair])
    assert torch.equal(maop_project([(pair[0] * 4, pair[1])])[0], projected * 4)


@conflicts
def test_scale_of_the_momentum_does_not_matter(pair, maop_project):
    (projected,) = maop_project([pair])
    assert torch.equal(maop_project([(pair[0], pair[1] * 4)])[0], projected)


@agreements
def test_no_conflict_changes_no_bit(pair, maop_project):
    (projected,) = maop_project([pair])
    assert torch.equal(projected.view(torch.int32), pair[0].view(torch.int32))


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=["bf16", "bf16 gradient", "bf16 momentum"],
)
@conflicts
def test_low_precision_is_computed_in_fp32(pair, dtypes, maop_project, monkeypatch):
    monkeypatch.setattr(maop, "SLICE_NUMEL", 10)
    gradient, momentum = (tensor.to(dtype) for tensor, dtype in zip(pair, dtypes, strict=True))
    (projected,) = maop_project([(gradient, momentum)])
    assert projected.dtype == gradient.dtype
    error = (projected - _equation_4(gradient, momentum).to(gradient.dtype)).abs()
    # The last bit may differ where rounding to bf16 is a tie.
    assert (error > 1e-6 * gradient.abs().max()).double().mean() <= 0.02


def _joined(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


NAMES = ["layers.0.up.weight", "layers.0.down.weight", "layers.1.up.weight", "layers.10.up.weight"]


@pytest.mark.parametrize(
    ("granularity", "units"),
    [("tensor", [[0], [1], [2], [3]]), ("layer", [[0, 1], [2], [3]]), ("global", [[0, 1, 2, 3]])],
)
def test_granularity(granularity, units, maop_project):
    pairs = [_pair(seed, (4, seed + 3)) for seed in range(4)]
    pairs[1] = (-0.2 * pairs[1][0], pairs[1][1])  # agrees on its own, not together with the other one of its layer
    projected = maop_project(pairs, names=NAMES, maop_granularity=granularity)
    for unit in units:
        gradient, momentum = (_joined([pairs[i][k] for i in unit]) for k in range(2))
        (expected,) = maop_project([(gradient, momentum)])
        _assert_near(_joined([projected[i] for i in unit]), expected.double(), scale=gradient)
