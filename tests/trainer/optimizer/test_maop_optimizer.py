"""MAOPAdamW as an optimizer: groups, state, copies, hooks, memory, figures."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import MAOPAdamW


GRADIENT, MOMENTUM = torch.tensor([[-3.0, 1.0], [0.5, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
PROJECTED = torch.tensor([[0.0, 1.0], [0.5, 2.0]])


def _model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def _groups(model):
    return [{"params": model[0].parameters(), "maop": True}, {"params": model[2].parameters()}]


def _train(model, optimizer, steps):
    """Steps whose gradients conflict: a new random target each."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()


def _equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("switch", ["maop", "maop_enabled"])
def test_is_adamw_when_off(switch):
    model, reference, projected = _model(), _model(), _model()
    optimizer = MAOPAdamW(_groups(model), lr=0.1)
    optimizer.param_groups[0][switch] = False
    _train(model, optimizer, range(6))
    _train(reference, torch.optim.AdamW(reference.parameters(), lr=0.1), range(6))
    _train(projected, MAOPAdamW(_groups(projected), lr=0.1), range(6))
    assert _equal(model, reference)
    assert not _equal(model, projected)
    assert optimizer.maop_figures() == {}


def test_first_step_is_adamws():
    model, reference = _model(), _model()
    _train(model, MAOPAdamW(_groups(model), lr=0.1), range(1))
    _train(reference, torch.optim.AdamW(reference.parameters(), lr=0.1), range(1))
    assert _equal(model, reference)


def test_only_flagged_groups_are_projected(maop_optimizer):
    optimizer = maop_optimizer([(GRADIENT, MOMENTUM)])
    other = maop_optimizer([(GRADIENT, MOMENTUM)], maop=False)
    for each in (optimizer, other):
        each.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0].grad, PROJECTED)
    assert torch.equal(other.param_groups[0]["params"][0].grad, GRADIENT)


def test_missing_gradients_and_missing_state_are_passed_over(maop_optimizer):
    optimizer = maop_optimizer([(GRADIENT, MOMENTUM)] * 3)
    first, second, third = optimizer.param_groups[0]["params"]
    first.grad = None
    del optimizer.state[second]
    optimizer.step()
    assert torch.equal(second.grad, GRADIENT)
    assert torch.equal(third.grad, PROJECTED)


def test_sparse_gradients_get_adamws_error(maop_optimizer):
    optimizer = maop_optimizer([(GRADIENT, MOMENTUM)])
    optimizer.param_groups[0]["params"][0].grad = GRADIENT.to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_project_as_well(copier, maop_optimizer):
    clone = copier(maop_optimizer([(GRADIENT, MOMENTUM)], names=["weight"], maop_granularity="layer"))
    param = clone.param_groups[0]["params"][0]
    param.grad = GRADIENT.clone()
    clone.step()
    assert torch.equal(param.grad, PROJECTED)
    assert clone.maop_figures()["fired_share"] == 1


@pytest.mark.parametrize("fused", [False, True])
def test_continues_from_a_state_dict(fused):
    model, resumed = _model(), _model()
    optimizer = MAOPAdamW(_groups(model), lr=0.1, fused=fused)
    _train(model, optimizer, range(4))
    resumed.load_state_dict(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    _train(model, optimizer, range(4, 8))

    other = MAOPAdamW(_groups(resumed), lr=0.5, fused=fused)
    other.load_state_dict(state)
    _train(resumed, other, range(4, 8))
    assert _equal(model, resumed)


def test_own_flags_outlive_a_state_dict_without_them():
    model = _model()
    plain = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.3)
    _train(model, plain, range(2))
    named = [
        {"params": list(layer.named_parameters()), "maop": i == 0, "name": f"layer {i}"}
        for i, layer in enumerate((model[0], model[2]))
    ]
    optimizer = MAOPAdamW(named, lr=0.1)
    optimizer.load_state_dict(plain.state_dict())
    groups = [{key: group[key] for key in ("name", "maop", "param_names", "lr")} for group in optimizer.param_groups]
    assert groups == [
        {"name": "layer 0", "maop": True, "param_names": ["weight", "bias"], "lr": 0.3},
        {"name": "layer 1", "maop": False, "param_names": ["weight", "bias"], "lr": 0.3},
    ]


def test_flags_of_a_state_dict_do_not_spread():
    model = _model()
    flagged = MAOPAdamW(_groups(model), lr=0.1)
    optimizer = MAOPAdamW([{"params": layer.parameters()} for layer in (model[0], model[2])], lr=0.1, maop=False)
    optimizer.load_state_dict(flagged.state_dict())
    assert not any(group.get("maop") for group in optimizer.param_groups)


@pytest.mark.parametrize("plain_adamw_exists", [False, True])
def test_hooks_run_once_a_step(plain_adamw_exists, monkeypatch, maop_optimizer):
    # Torch adds its hooks to the `step` of a class when the first optimizer of that class is made.
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", step.__wrapped__ if getattr(step, "hooked", False) else step)
    if plain_adamw_exists:
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    optimizer, calls = maop_optimizer([(GRADIENT, MOMENTUM)]), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step()
    assert calls == ["pre", "post"]


def test_gradient_of_a_closure_is_projected(maop_optimizer):
    optimizer = maop_optimizer([(torch.zeros(2, 2), MOMENTUM)])
    (param,) = optimizer.param_groups[0]["params"]

    def closure():
        optimizer.zero_grad()
        loss = (param * GRADIENT).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 0
    assert torch.equal(param.grad, PROJECTED)


class _Allocations(TorchDispatchMode):
    """Bytes of each tensor made, and the names of the operators."""

    def __init__(self):
        super().__init__()
        self.bytes, self.operators = [0], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operators.add(func.overloadpacket.__name__)
        if isinstance(result, torch.Tensor) and not func.is_view and result._base is None:
            if not any(result is arg for arg in args):
                self.bytes.append(result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1024), (torch.bfloat16, 4 * 2**20)], ids=["fp32", "bf16"]
)
def test_makes_no_copy_and_does_not_wait_for_the_device(dtype, limit, maop_optimizer):
    gradient = torch.randn(1024, 4096).to(dtype)
    optimizer = maop_optimizer([(gradient, -gradient), (gradient, gradient)])
    with _Allocations() as allocations:
        optimizer._project()
    assert max(allocations.bytes) <= limit
    assert not allocations.operators & {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
    assert "dot" in allocations.operators


def test_figures_are_means_since_the_last_call(maop_optimizer):
    orthogonal = (torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.0]))
    optimizer = maop_optimizer([(torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 0.0])), orthogonal])
    optimizer._project()
    assert optimizer.maop_figures() == pytest.approx({"fired_share": 0.5, "cosine": -0.5, "removed_share": 0.6})
    assert optimizer.maop_figures() == {}
    optimizer._project()
    optimizer.param_groups[0]["params"][0].grad = torch.tensor([-3.0, 0.0])
    optimizer._project()
    assert optimizer.maop_figures() == pytest.approx({"fired_share": 0.25, "cosine": -0.25, "removed_share": 0.3})


def test_figures_of_nothing_are_zero(maop_optimizer):
    optimizer = maop_optimizer([(torch.zeros(2), torch.zeros(2))])
    optimizer._project()
    assert optimizer.maop_figures() == {"fired_share": 0, "cosine": 0, "removed_share": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maop_granularity": "row"}, "`maop_granularity` must be one of .*'row'"),
        ({"maop_granularity": "layer"}, "`params` must be named"),
        ({"maximize": True}, "`maximize` must be False"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAOPAdamW(_groups(_model()), **arguments)


@pytest.mark.parametrize("granularity", ["tensor", "global"])
def test_the_raw_gradient_enters_the_second_moment_alone(granularity, maop_optimizer):
    """As an AdamW does that is given the projected gradient for its first moment and the raw one for its second."""
    pairs = [(GRADIENT, MOMENTUM), (-GRADIENT, MOMENTUM)]  # the second is not in conflict
    settings = {"lr": 0.1, "weight_decay": 0.0, "maop_granularity": granularity}
    raw = maop_optimizer(pairs, maop_second_moment="raw", **settings)
    projected = maop_optimizer(pairs, **settings)
    weights = [param.detach().clone() for param in raw.param_groups[0]["params"]]
    raw.step()
    projected.step()
    for param, other, weight, (gradient, _) in zip(
        raw.param_groups[0]["params"], projected.param_groups[0]["params"], weights, pairs, strict=True
    ):
        assert torch.equal(param.grad, gradient)
        average, square = raw.state[param]["exp_avg"], raw.state[param]["exp_avg_sq"]
        torch.testing.assert_close(average, projected.state[other]["exp_avg"])
        torch.testing.assert_close(square, 0.999 + 0.001 * gradient**2)
        # The second step of these moments.
        step = average / (1 - 0.9**2) / ((square / (1 - 0.999**2)).sqrt() + 1e-8)
        torch.testing.assert_close(param.detach(), weight - 0.1 * step)


def test_a_skipped_step_leaves_the_momentum_alone(maop_optimizer):
    optimizer = maop_optimizer([(GRADIENT, MOMENTUM)], lr=0.1, fused=True, maop_second_moment="raw")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"], MOMENTUM)


def test_the_raw_gradient_needs_a_momentum():
    with pytest.raises(ValueError, match=r"`betas\[0\]` must be above 0 for `maop_second_moment='raw'`"):
        MAOPAdamW(_model().parameters(), maop=True, betas=(0.0, 0.9), maop_second_moment="raw")
    with pytest.raises(ValueError, match="`maop_second_moment` must be one of"):
        MAOPAdamW(_model().parameters(), maop=True, maop_second_moment="both")
