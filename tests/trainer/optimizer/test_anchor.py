"""The anchor pulls weights back to where a stage began, and is the same in shards, resumed, and on the CPU."""

import math

import pytest
import torch
from ranks import run_on_ranks
from safetensors.torch import load_file, save_file
from tiny_training import record, tiny_model, tiny_trainer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modeling_rosetta import mount
from tests.modeling_rosetta.test_mounting import SPEECH
from trainer import Anchor, MAOPAdamW
from trainer.lora import lora_config
from trainer.optimizer.whole_tensors import sharded_as, whole_tensors


@pytest.fixture(params=[0, 15], ids=["in pieces", "small at once"])
def layer(request, tmp_path, monkeypatch):
    """A layer, an optimizer for it, and a function that anchors it by importances in a file, by name."""
    monkeypatch.setattr("trainer.optimizer.anchor.SMALL_NUMEL", request.param)
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, dtype=torch.float64)
    optimizer = MAOPAdamW(layer.named_parameters(), lr=0.1, weight_decay=0.0, maop=False)

    def anchored(strength, importances, **settings):
        save_file(importances, tmp_path / "fisher.safetensors")
        anchor = Anchor(strength, tmp_path / "fisher.safetensors", **settings)
        anchor.start(optimizer)
        return anchor

    def step(seed=0):
        generator = torch.Generator().manual_seed(seed)
        for param in layer.parameters():
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        optimizer.step()

    return layer, optimizer, anchored, step


def _importances(layer) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.rand(param.shape, generator=generator, dtype=param.dtype)
        for name, param in layer.named_parameters()
    }


@pytest.mark.parametrize("storage", ["float32", "cpu"])
def test_it_takes_the_proximal_step(storage, layer, monkeypatch):
    monkeypatch.setattr("trainer.optimizer.anchor.CPU_SLICE_NUMEL", 6)  # more than one piece of the weight
    layer, optimizer, anchored, step = layer
    starts = {name: param.detach().clone() for name, param in layer.named_parameters()}
    step()
    moved = {name: param.detach().clone() for name, param in layer.named_parameters()}
    layer.load_state_dict(starts)
    optimizer.state.clear()
    importances = _importances(layer)
    mean = torch.cat([importance.flatten() for importance in importances.values()]).mean()
    anchored(3.0, importances, storage=storage)
    step()
    for name, param in layer.named_parameters():
        weight = 0.1 * 3.0 * importances[name] / mean
        # The minimum of |x - moved|^2 / 2 + weight |x - start|^2 / 2.
        torch.testing.assert_close(param, (moved[name] + weight * starts[name]) / (1 + weight), rtol=1e-12, atol=0)


@pytest.mark.parametrize("strength", [3.0, math.inf])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("taken", [None, 1.0])
def test_small_tensors_at_once_get_the_bits_of_each_in_pieces(strength, storage, taken, tmp_path, monkeypatch):
    pulled = []
    for small in (0, 2**16):
        monkeypatch.setattr("trainer.optimizer.anchor.SMALL_NUMEL", small)
        torch.manual_seed(0)
        layer = nn.Linear(67, 33)
        save_file(_importances(layer), tmp_path / "fisher.safetensors")
        optimizer = MAOPAdamW(layer.named_parameters(), lr=0.1, maop=False, fused=True)
        anchor = Anchor(strength, tmp_path / "fisher.safetensors", storage=storage)
        anchor.start(optimizer)
        for param in layer.parameters():
            param.grad = torch.randn_like(param)
        if taken is not None:
            optimizer.found_inf = torch.tensor(1 - taken)
        optimizer.step()
        pulled.append(torch.cat([param.detach().flatten() for param in layer.parameters()]))
    assert torch.equal(*pulled) and pulled[0].isfinite().all()


def test_rounded_importances_are_nearly_these(layer):
    layer, _, anchored, _ = layer
    anchor = anchored(3.0, _importances(layer), storage="bfloat16")
    assert {tensor.dtype for tensor in anchor._importances_of.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in anchor._starts.values()} == {torch.float64}


@pytest.mark.parametrize(
    ("weight", "parameters"),
    [((5, 5), None), (None, None), ((3, 5), "^bias")],
    ids=["of another shape", "not known", "not asked for"],
)
def test_what_is_free(weight, parameters, layer):
    layer, _, anchored, step = layer
    importances = {"bias": torch.rand(3), "gone": torch.rand(3)}
    importances |= {} if weight is None else {"weight": torch.rand(weight)}
    starts = layer.weight.detach().clone(), layer.bias.detach().clone()
    anchored(math.inf, importances, parameters=parameters)
    step()
    assert torch.equal(layer.bias, starts[1]) and not torch.equal(layer.weight, starts[0])


def test_a_skipped_step_pulls_nothing(layer):
    layer, optimizer, anchored, step = layer
    anchored(3.0, _importances(layer))
    step()
    weights = [param.detach().clone() for param in layer.parameters()]
    layer.weight.grad = layer.bias.grad = None
    optimizer.step()
    assert all(torch.equal(param, weight) for param, weight in zip(layer.parameters(), weights, strict=True))


@pytest.mark.parametrize(
    ("importances", "message"),
    [
        ({"other": torch.ones(3)}, "has nothing of a parameter that is to be anchored"),
        ({"bias": torch.zeros(3)}, "the mean of the importances must be above 0, got 0.0"),
        ({"bias": torch.full((3,), math.nan)}, "the mean of the importances must be above 0, got nan"),
    ],
)
def test_importances_that_say_nothing_are_refused(importances, message, layer):
    with pytest.raises(ValueError, match=f"`anchor_importance_from`: .*{message}"):
        layer[2](1.0, importances)


@pytest.fixture
def stage(tmp_path):
    """Trains a stage, from an earlier one if it has a strength."""

    def train(model, resume_from=None, output_dir=tmp_path, **arguments):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "shield_steps": 1}
        if arguments.get("anchor_strength") is not None:
            settings["anchor_importance_from"] = str(tmp_path / "checkpoint-4")
        records = [record(index) for index in range(48)]
        trainer = tiny_trainer(model, output_dir, records, **{**settings, **arguments})
        trainer.train(resume_from_checkpoint=resume_from)
        return {name: param.detach().clone() for name, param in trainer.model.named_parameters()}

    return train


def _assert_equal(weights, others):
    assert weights.keys() == others.keys()
    differing = [name for name, weight in weights.items() if not torch.equal(weight, others[name])]
    assert not differing


def test_a_stage_with_an_anchor(stage, tmp_path):
    stage(tiny_model())
    free = stage(tiny_model(seed=1), output_dir=tmp_path / "next")
    _assert_equal(stage(tiny_model(seed=1), output_dir=tmp_path / "next", anchor_strength=0.0), free)
    start = tiny_model(seed=1)
    trained = {name for name, param in start.named_parameters() if param.requires_grad}
    held = stage(tiny_model(seed=1), output_dir=tmp_path / "next", anchor_strength=math.inf)
    _assert_equal(held, dict(start.named_parameters()))
    pulled = stage(tiny_model(seed=1), output_dir=tmp_path / "next", anchor_strength=1000.0)
    starts = dict(start.named_parameters())

    def moved(weights):
        return sum(float((weights[name] - starts[name]).square().sum()) for name in trained) ** 0.5

    assert 0 < moved(pulled) < 0.9 * moved(free)


def test_what_is_new_is_not_held(stage, tmp_path):
    stage(tiny_model())
    model = tiny_model(seed=1)
    mount(model, SPEECH, num_experts=2)
    starts = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    weights = stage(model, output_dir=tmp_path / "next", anchor_strength=math.inf, weight_decay=0.5)
    changed = {name for name, start in starts.items() if not torch.equal(weights[name], start)}
    assert changed and all(SPEECH["name"] in name for name in changed)


def test_resumed_it_is_the_uninterrupted_run(stage, tmp_path):
    stage(tiny_model())
    whole = stage(tiny_model(seed=1), output_dir=tmp_path / "next", anchor_strength=50.0)
    checkpoint = tmp_path / "next" / "checkpoint-2"
    resumed = stage(tiny_model(seed=1), str(checkpoint), tmp_path / "resumed", anchor_strength=50.0)
    _assert_equal(resumed, whole)
    stored = load_file(checkpoint / "anchor.safetensors")
    assert torch.equal(
        stored["start.lm_head.weight" if "start.lm_head.weight" in stored else "start.model.norm.weight"],
        dict(tiny_model(seed=1).named_parameters())["model.norm.weight"],
    )
    (checkpoint / "anchor.safetensors").unlink()
    with pytest.raises(ValueError, match="`anchor_strength`: the checkpoint has no anchor to go on with"):
        stage(tiny_model(seed=1), str(checkpoint), tmp_path / "other", anchor_strength=50.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchor_strength": -1.0, "anchor_importance_from": "x"}, "`anchor_strength` must be None or at least 0"),
        ({"anchor_strength": math.nan, "anchor_importance_from": "x"}, "`anchor_strength` must be None or at least 0"),
        ({"anchor_importance_from": "x"}, "`anchor_importance_from` must be given with `anchor_strength`"),
        ({"anchor_storage": "disk"}, "`anchor_storage` must be one of"),
        ({"anchor_parameters": "("}, r"`anchor_parameters` must be a regular expression, got '\('"),
        ({"maop_second_moment": "both"}, "`maop_second_moment` must be one of"),
        ({"anchor_strength": 1.0, "anchor_importance_from": "none"}, "`anchor_importance_from` must be a checkpoint"),
        ({"anchor_strength": 1.0, "anchor_importance_from": "f.safetensors"}, "or a file of importances, got 'f.safe"),
    ],
)
def test_errors_before_any_work(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tiny_model(), tmp_path, [record(0)], **arguments)


def test_adapters_are_refused(stage):
    stage(tiny_model())
    model = tiny_model()
    model.add_adapter(lora_config(model.config, r=2))
    with pytest.raises(ValueError, match="`anchor_strength` must be None for a model with adapters"):
        stage(model, anchor_strength=1.0)


def _train_anchored(folder, world_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    if world_size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    optimizer = MAOPAdamW(model.named_parameters(), lr=0.1, maop=True)
    anchor = Anchor(2.0, folder / "fisher.safetensors")
    anchor.start(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for param in model.parameters():
            param.grad = sharded_as(param, torch.randn(param.shape, generator=generator, dtype=torch.float64))
        optimizer.step()
    is_main_process = world_size == 1 or torch.distributed.get_rank() == 0
    saved = folder / f"{world_size}"
    saved.mkdir(exist_ok=True)
    anchor.save(saved, is_main_process)
    weights = whole_tensors(dict(model.named_parameters()), is_main_process)
    if is_main_process:
        torch.save(weights, saved / "weights.pt")
    if world_size > 1:
        torch.distributed.barrier()
    again = Anchor(2.0, folder / "nowhere", storage="cpu")
    again.start(MAOPAdamW(model.named_parameters(), lr=0.1, maop=True), saved)
    _assert_equal(again._starts, anchor._starts)
    _assert_equal(again._importances_of, anchor._importances_of)


def test_sharded_is_unsharded(tmp_path):
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    save_file(_importances(model.double()), tmp_path / "fisher.safetensors")
    _train_anchored(tmp_path, 1)
    for world_size in (2, 3):
        run_on_ranks(_train_anchored, world_size, tmp_path, world_size)
        whole, sharded = (torch.load(tmp_path / f"{size}" / "weights.pt") for size in (1, world_size))
        torch.testing.assert_close(sharded, whole, rtol=0, atol=1e-12)
        anchors = (load_file(tmp_path / f"{size}" / "anchor.safetensors") for size in (world_size, 1))
        torch.testing.assert_close(*anchors, rtol=1e-12, atol=0)
