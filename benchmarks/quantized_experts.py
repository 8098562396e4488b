"""
Memory and error of experts of 8 and 4 bits beside bf16: at the layer shapes of the full model, Rosetta-3.8B-A1B, with
random weights, one layer of which is built; and, with `--model`, of a repository with its own weights. Prints both and
writes them as JSON.

    python benchmarks/quantized_experts.py [--model FOLDER_OR_HUB_ID] [--output FILE]
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from turns import ratio, seconds_in_turns, write  # noqa: E402

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration  # noqa: E402
from modeling_rosetta.modeling_rosetta import RosettaExpertPool  # noqa: E402
from modeling_rosetta.quantization_rosetta import experts_of, quantize_experts  # noqa: E402


GROUP_SIZE, TOKENS, ROUNDS = 32, 256, 5


def experts_bytes(module: torch.nn.Module) -> int:
    return sum(weight.nbytes for experts in experts_of(module).values() for weight in experts.parameters())


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.float() - expected.float()).norm() / expected.float().norm())


def pool(config: RosettaConfig, bits: int | None) -> RosettaExpertPool:
    """One of 6 experts, as for drawing, with the weights of a fresh model."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        built = RosettaExpertPool(config, config.expert_pools["vae"]).to(torch.bfloat16)
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=config.initializer_range)
    if bits is not None:
        quantize_experts(built.experts, bits, GROUP_SIZE)
    return built.eval()


@torch.no_grad()
def full_size() -> dict:
    config = RosettaConfig()
    config._experts_implementation = "grouped_mm"
    pools = {"bf16": pool(config, None), "8 bits": pool(config, 8), "4 bits": pool(config, 4)}
    tokens = torch.randn(TOKENS, config.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected, result = pools["bf16"](tokens)[0], {}
    seconds = seconds_in_turns({name: lambda built=built: built(tokens) for name, built in pools.items()}, ROUNDS)
    layers = config.num_hidden_layers * sum(config.expert_pools.values()) / config.expert_pools["vae"]
    for name, built in pools.items():
        result[name] = {
            "GB of all experts": experts_bytes(built) * layers / 1e9,
            "of bf16's": experts_bytes(built) / experts_bytes(pools["bf16"]),
            "error of a layer's output": error(built(tokens)[0], expected),
            "seconds over bf16's": ratio(seconds[name], seconds["bf16"])["median"],
        }
    return result


@torch.no_grad()
def of_repository(repo: str) -> dict:
    result, expected = {}, None
    for name, bits in (("bf16", None), ("8 bits", 8), ("4 bits", 4)):
        config = None if bits is None else {"quant_method": "rosetta", "bits": bits, "group_size": GROUP_SIZE}
        model = RosettaForCausalLMAndImageGeneration.from_pretrained(
            repo, dtype=torch.bfloat16, quantization_config=config
        ).eval()
        ids = torch.randint(model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
        logits = model(ids).logits
        expected = logits if expected is None else expected
        result[name] = {
            "MB of the experts": experts_bytes(model) / 1e6,
            "MB of all weights": sum(weight.nbytes for weight in model.parameters()) / 1e6,
            "error of the logits": error(logits, expected),
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a repository to quantise, too")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/quantized_experts.json"))
    arguments = parser.parse_args()
    result = {"full size, random weights": full_size()}
    if arguments.model is not None:
        result[arguments.model] = of_repository(arguments.model)
    for name, figures in result.items():
        print(name)
        for kind, values in figures.items():
            print(f"  {kind:8}" + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    write(arguments.output, result)


if __name__ == "__main__":
    main()
