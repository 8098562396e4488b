"""accelerate takes the launch configurations, and they come to what their comments say."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env


CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"


def _launched(name: str, *options: str):
    """The arguments of `accelerate launch` with this configuration."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(CONFIGS / name), *options, "script.py"])
    return _validate_launch_command(args)[0]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_accelerate_knows_every_key(file):
    config = load_config_from_file(str(file))  # raises on a key of its own that it does not know
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    nested = {*(config.fsdp_config or {}), *(config.parallelism_config or {})}
    assert nested <= known


def test_cpu():
    args = _launched("cpu.yaml")
    assert (args.use_cpu, args.num_processes, args.mixed_precision) == (True, 1, "no")


def test_single_gpu():
    args = _launched("single_gpu.yaml")
    assert (args.use_cpu, args.num_processes, args.mixed_precision, args.use_fsdp) == (False, 1, "bf16", False)


@pytest.mark.parametrize(("name", "processes"), [("fsdp2.yaml", 8), ("hsdp_multi_node.yaml", 64)])
def test_sharding(name, processes, monkeypatch):
    args = _launched(name)
    assert args.use_fsdp and args.num_processes == processes and args.mixed_precision == "bf16"
    for key, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing and plugin.cpu_ram_efficient_loading
    assert "SHARDED_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # the model's own


def test_several_nodes_shard_inside_and_replicate_between_them(monkeypatch):
    args = _launched("hsdp_multi_node.yaml", "--machine_rank", "3", "--main_process_ip", "node0")
    assert args.use_parallelism_config and (args.num_machines, args.machine_rank) == (8, 3)
    for key, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(key, value)
    mesh = ParallelismConfig()
    assert (mesh.dp_replicate_size, mesh.dp_shard_size) == (args.num_machines, 8)
    assert mesh.total_size == args.num_processes
