"""Differential learning rates (DiffLR): which parameter trains at which rate."""

import re
from collections.abc import Collection

from torch import nn

from modeling_rosetta.composition_rosetta import own_modules


_WRAPPERS_INSIDE = re.compile(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_WRAPPERS_OUTSIDE = re.compile(r"^(module\.)?(base_model\.model\.)?")


def diff_lr_groups(
    model: nn.Module,
    config,
    learning_rate: float,
    generation_learning_rate: float | None = None,
    weight_decay: float = 0.1,
    decay_parameter_names: Collection[str] | None = None,
    latent_projections_at_generation_rate: bool = False,
    maop: bool = True,
) -> list[dict]:
    """
    Parameter groups of Algorithm 1 (paper, B.2). Modules that serve nothing but generated token types (VAE, and
    features of a user's own with `is_generated`) train at the generation rate: the VAE router and experts in Rosetta,
    the whole generation stream in MoT, nothing in MoE. All else trains at the base rate.

    Args:
        model (`nn.Module`): may be wrapped (DDP, FSDP, `torch.compile`, peft). Frozen parameters are left out.
        config (`RosettaConfig`)
        learning_rate (`float`): the base rate.
        generation_learning_rate (`float`, *optional*): defaults to the base rate.
        weight_decay (`float`): of the parameters that decay.
        decay_parameter_names (`Collection[str]`, *optional*): names of the parameters that decay, as `model` has
            them; by default all do.
        latent_projections_at_generation_rate (`bool`): whether the latent projections and the time embeddings, which
            are new and serve the generated types only, train at the generation rate as well.
        maop (`bool`): flag the shared expert that serves text for [`MAOPAdamW`].

    Returns:
        `list[dict]`: groups with named parameters and a `name`: `base`, `shared_expert` and `generation`, each also
        with `_no_decay` appended. Only groups that have parameters; the base rate comes first.

    Raises:
        ValueError: if nothing in `model` requires a gradient.
    """
    generated = [t for t in config.token_types if config.is_generated(t)]
    pools = [t["expert_pool"] for t in generated]
    # Text that goes along with what is drawn, such as MoT's tokens before an image, does not make a pool serve text.
    companions = [t for t in config.token_types[1:] if t["embeds_from"] == "input_ids" and t["expert_pool"] in pools]
    modules = own_modules(config, [t["name"] for t in (*generated, *companions)])
    in_layers = tuple(f"{module}." for module in modules if ".layers." in module)
    projections = tuple(f"{module}." for module in modules if ".layers." not in module)
    foundation_expert = f".shared_experts.{config.token_types[0]['shared_expert']}."

    def role(name: str) -> str:
        if foundation_expert in name:
            return "shared_expert"
        if name.startswith(in_layers) or latent_projections_at_generation_rate and name.startswith(projections):
            return "generation"
        return "base"

    if generation_learning_rate is None:
        generation_learning_rate = learning_rate
    rates = {"base": learning_rate, "shared_expert": learning_rate, "generation": generation_learning_rate}
    groups: dict[tuple[str, bool], dict] = {
        (kind, decays): {
            "name": kind if decays else f"{kind}_no_decay",
            "params": [],
            "lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
            "maop": maop and kind == "shared_expert",
        }
        for kind, rate in rates.items()
        for decays in (True, False)
    }
    for name, param in model.named_parameters():
        if param.requires_grad:
            decays = decay_parameter_names is None or name in decay_parameter_names
            clean_name = clean_parameter_name(name)
            groups[role(clean_name), decays]["params"].append((clean_name, param))
    groups = [group for group in groups.values() if group["params"]]
    if not groups:
        raise ValueError("`model` has no parameter that requires a gradient.")
    return groups


def clean_parameter_name(name: str) -> str:
    """The name that a parameter has in the model itself, without the prefixes of modules that wrap it."""
    return _WRAPPERS_OUTSIDE.sub("", _WRAPPERS_INSIDE.sub("", name))


__all__ = ["clean_parameter_name", "diff_lr_groups"]
