"""A dense Qwen3 to a Rosetta that reads text, from file to file: for checkpoints that do not fit into memory."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from modeling_rosetta import (
    RosettaConfig,
    RosettaForCausalLMAndImageGeneration,
    text_config_from_dense,
    upcycling_rules,
)
from modeling_rosetta.repository_rosetta import AUTO_MAP, staged_directory
from modeling_rosetta.text_processor_rosetta import load_dense_tokenizer, text_processor, token_fields

from .weight_files import open_weights, parse_hub_source, write_weights


ARCHITECTURES: dict[str, tuple[Callable[..., RosettaConfig], int]] = {
    "rosetta": (RosettaConfig, 3),
    "moe": (RosettaConfig.moe, 12),
    "mot": (RosettaConfig.mot, 7),
}


def upcycle_checkpoint(
    source: str | Path,
    target: str | Path,
    config: RosettaConfig | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
):
    """
    Upcycles a dense Qwen3 checkpoint as [`~modeling_rosetta.upcycle`] does, bit for bit, and writes what
    `RosettaForCausalLMAndImageGeneration.from_pretrained`, or transformers with `trust_remote_code`, loads: weights,
    configuration, code and a processor of text: also what `examples/pretrain.py` starts from. Holds one shard of the
    weights in memory. An error or an interruption leaves `target` as it was.

    Args:
        source (`str` or `Path`): folder of the dense checkpoint, or `owner/name[@revision]` on the Hub.
        target (`str` or `Path`): the folder to write.
        config (`RosettaConfig`, *optional*): of a model that reads text only; by default
            [`~modeling_rosetta.text_config_from_dense`]. A vocabulary of the dense model's size gets the rows that
            special tokens lack.
        dtype (`torch.dtype`, *optional*): of the weights; by default the checkpoint's.
        max_shard_size (`int` or `str`): the most bytes of a file of weights.

    Raises:
        ValueError: before anything is written, if the source is damaged or no dense Qwen3, has no tokenizer that reads
            words, or `config` does not fit.
        OSError: if there is no configuration or tokenizer.
    """
    where = _where(source)
    dense_config = AutoConfig.from_pretrained(**where)
    config = text_config_from_dense(dense_config) if config is None else config
    try:
        processor = text_processor(load_dense_tokenizer(vocab_size=dense_config.vocab_size, **where))
    except (OSError, ValueError) as error:
        raise type(error)(f"`source`: {error}") from error
    if config.vocab_size == dense_config.vocab_size:
        config.vocab_size = max(config.vocab_size, len(processor.tokenizer))
    processor.set_token_types(config)
    rules = upcycling_rules(dense_config, config)
    files = open_weights(source)
    if missing := sorted({key for rule in rules.values() for key in rule.sources} - files.tensors.keys()):
        raise ValueError(
            f"`source`: the checkpoint {source} lacks {len(missing)} tensors, the first is '{missing[0]}'."
        )
    config.dtype = dtype or files.tensors["model.norm.weight"].dtype
    for field, token_id in token_fields(processor).items():
        setattr(config, field, token_id)
    with torch.device("meta"):
        model = RosettaForCausalLMAndImageGeneration(config).to(config.dtype)
    tensors = {name: model.get_parameter(name) for name in rules}

    def read(name: str) -> torch.Tensor:
        sources, make = rules[name]
        tensor = make(*map(files.read, sources)).to(config.dtype)
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"`source`: '{name}' comes out with shape {tuple(tensor.shape)}, the configuration says "
                f"{tuple(tensors[name].shape)}."
            )
        return tensor.contiguous()

    with staged_directory(target) as folder:
        write_weights(folder, tensors, read, max_shard_size)
        type(config).register_for_auto_class()
        type(model).register_for_auto_class("AutoModelForCausalLM")
        type(processor).register_for_auto_class()
        config.auto_map = dict(AUTO_MAP)
        config.architectures = [type(model).__name__]
        custom_object_save(model, folder, config=config)
        config.save_pretrained(folder)
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        processor.save_pretrained(folder)


def _where(source: str | Path) -> dict:
    if Path(source).exists():
        return {"pretrained_model_name_or_path": source}
    repo_id, _, revision = parse_hub_source(str(source))
    return {"pretrained_model_name_or_path": repo_id, "revision": revision}


def add_command(commands):
    """`python -m hub_upload upcycle SRC DST`."""
    parser = commands.add_parser(
        "upcycle",
        help="a dense Qwen3 to a Rosetta that reads text",
        description="Upcycles a dense Qwen3 checkpoint, shard by shard. Further token types are mounted on it.",
    )
    parser.add_argument("source", help="folder, or owner/name[@revision] on the Hub")
    parser.add_argument("target", type=Path, help="folder to write; an error leaves it as it was")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="rosetta", help="default: rosetta")
    parser.add_argument("--num-experts", type=int, help="of text; default: 3 in Rosetta, 12 in MoE, 7 in MoT")
    parser.add_argument("--vocab-size", type=int, help="to add rows to the vocabulary")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    parser.add_argument("--max-shard-size", default="5GB", help="most bytes of a file of weights (default: 5GB)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace):
    variant, num_experts = ARCHITECTURES[options.architecture]
    text = variant().token_types[0]
    fields = {"token_types": [text], "expert_pools": {text["expert_pool"]: options.num_experts or num_experts}}
    if options.vocab_size is not None:
        fields["vocab_size"] = options.vocab_size
    config = text_config_from_dense(AutoConfig.from_pretrained(**_where(options.source)), **fields)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    upcycle_checkpoint(options.source, options.target, config, dtype, options.max_shard_size)
    print(f"Written: {options.target}")


__all__ = ["add_command", "upcycle_checkpoint"]
