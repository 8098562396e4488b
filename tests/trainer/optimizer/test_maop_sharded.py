"""MAOP on sharded gradients: each rank projects its shard as part of the whole tensor, with one all-reduce for each
mesh dimension that shards. The process group is torch's fake one; the test plays the other ranks."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.optimizer import maop


WHOLE = [
    (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)), torch.full((5, 3), 0.5)) for seed in range(3)
]


@pytest.fixture
def world():
    def start(shape, names):
        dist.init_process_group("fake", rank=0, world_size=torch.Size(shape).numel(), store=FakeStore())
        return init_device_mesh("cpu", shape, mesh_dim_names=names)

    yield start
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shape", "names", "placements"),
    [((2,), ("shard",), [Shard(0)]), ((2, 2), ("replicate", "shard"), [Replicate(), Shard(0)])],
    ids=["FSDP", "HSDP"],
)
def test_shards_are_projected_as_the_whole(shape, names, placements, world, maop_project, monkeypatch):
    pairs = [(-gradient.abs() if row else gradient.abs(), momentum) for row, (gradient, momentum) in enumerate(WHOLE)]
    expected = maop_project(pairs)

    mesh = world(shape, names)
    own, others = ([tuple(tensor[rows] for tensor in pair) for pair in pairs] for rows in (slice(3), slice(3, 5)))
    reduced = []

    def all_reduce(products, group=None):
        reduced.append(group)
        products += maop._inner_products(others).flatten()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    sharded = [
        tuple(DTensor.from_local(part, mesh, placements, shape=(5, 3), stride=(3, 1)) for part in pair) for pair in own
    ]
    projected = maop_project(sharded)
    for shard, whole in zip(projected, expected, strict=True):
        torch.testing.assert_close(shard.to_local(), whole[:3], rtol=1e-5, atol=1e-6)
    assert reduced == [mesh.get_group("shard")]


def test_gradient_that_is_not_sharded_as_its_momentum(world):
    mesh = world((2,), ("shard",))
    gradient, momentum = WHOLE[0]
    sharded = DTensor.from_local(momentum[:3], mesh, [Shard(0)], shape=(5, 3), stride=(3, 1))
    replicated = DTensor.from_local(gradient, mesh, [Replicate()])
    with pytest.raises(ValueError, match="sharded as its momentum"):
        maop._inner_products([(replicated, sharded)])
