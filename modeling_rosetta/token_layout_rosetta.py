"""Which module handles which token: read off the token types of the configuration, once a forward pass."""

from dataclasses import dataclass

import torch

from .configuration_rosetta import RosettaConfig


class TokenGroups:
    """Partition of the tokens among modules, made once a forward pass and used by every layer.

    Args:
        group_of_type (`list[int]`): the group of each token type.
        token_types (`torch.LongTensor` of shape `(T,)`)
    """

    def __init__(self, group_of_type: list[int], token_types: torch.Tensor):
        num_groups = max(group_of_type) + 1
        self.order = None
        if num_groups > 1:
            groups = torch.tensor(group_of_type, device=token_types.device)[token_types]
            self.order = groups.argsort(stable=True)
            self.inverse = self.order.argsort()
            self.sizes = torch.bincount(groups, minlength=num_groups).tolist()

    def split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(T, ...) to one tensor (T_group, ...) a group."""
        return (tokens,) if self.order is None else tokens.index_select(0, self.order).split(self.sizes)

    def merge(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """One tensor (T_group, ...) a group back to (T, ...)."""
        return parts[0] if self.order is None else torch.cat(parts).index_select(0, self.inverse)


@dataclass
class TokenLayout:
    """Who handles which token: `pools`, `streams` and `shared_experts` partition them; `shielded` (T, 1), if any,
    marks those whose gradient must not reach the shared expert."""

    pools: TokenGroups
    streams: TokenGroups
    shared_experts: TokenGroups
    shielded: torch.Tensor | None = None


def token_layout(config: RosettaConfig, token_types: torch.Tensor, shield_shared_expert: bool) -> TokenLayout:
    """Reads the layout of `token_types` (T,) off the configuration."""
    types = config.token_types
    shared_experts = [*config.shared_experts, None]
    shielded = None
    if shield_shared_expert:
        # Other types' experts warm up first. Where types share their experts too, as in MoE, nothing is shielded.
        pool, expert = types[0]["expert_pool"], types[0]["shared_expert"]
        shields = [t["expert_pool"] != pool and t["shared_expert"] == expert for t in types]
        shielded = torch.tensor(shields, device=token_types.device)[token_types, None]
    return TokenLayout(
        pools=TokenGroups([config.pools.index(t["expert_pool"]) for t in types], token_types),
        streams=TokenGroups([config.attention_streams.index(t["attention_stream"]) for t in types], token_types),
        shared_experts=TokenGroups([shared_experts.index(t["shared_expert"]) for t in types], token_types),
        shielded=shielded,
    )


__all__ = ["TokenGroups", "TokenLayout", "token_layout"]
