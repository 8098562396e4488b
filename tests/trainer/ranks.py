"""Functions of several processes on one CPU, and FSDP2 in them.

accelerate shards on accelerators only: on a CPU it quietly replicates (DDP) what was to be sharded. `shard_on_cpu`
makes it take the path that it takes on a GPU, so that all but the device is real.
"""

import functools
import os
import socket
import sys
from contextlib import closing

import torch
import torch.multiprocessing
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType


def run_on_ranks(function, world_size: int, *args):
    """Calls `function(*args)` in `world_size` new processes that `torch.distributed` joins over gloo. A failing or
    dying rank fails the call."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_run_rank, (world_size, port, function, args), nprocs=world_size)


def shard_on_cpu():
    """Makes accelerate shard on a CPU if FSDP was asked for."""
    initialise = AcceleratorState.__init__

    @functools.wraps(initialise)
    def sharding(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = sharding


def forget_accelerator():
    """Lets the next Trainer of this process be configured in another way; the process group stays."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _run_rank(rank: int, world_size: int, port: int, function, args):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    shard_on_cpu()
    torch.distributed.init_process_group("gloo")
    try:
        function(*args)
    finally:
        torch.distributed.destroy_process_group()
    # Not through the interpreter's own end, in which a gloo thread that still lets go of a tensor aborts the process
    # (https://github.com/pytorch/pytorch/pull/179291).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
