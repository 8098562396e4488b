"""Which module handles which token: read off the token types of the configuration, once a forward pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .configuration_rosetta import RosettaConfig


class TokenGroups:
    """Partition of the tokens among modules, made once a forward pass and used by every layer.

    Args:
        group_of_type (`list[int]`): the group of each token type.
        token_types (`torch.LongTensor` of shape `(T,)`)
        sizes_of_type (`list[int]`, *optional*): how many tokens there are of each type. While a graph is compiled they
            may not be known: then each group gets all tokens, and of what it makes of them its own are taken.
    """

    def __init__(self, group_of_type: list[int], token_types: torch.Tensor, sizes_of_type: list[int] | None):
        num_groups = max(group_of_type) + 1
        self.all_in = 0 if num_groups == 1 else None  # the one group that all tokens are in
        self.is_of_group: list[torch.Tensor] | None = None
        if sizes_of_type is not None:
            self.sizes = [0] * num_groups
            for group, size in zip(group_of_type, sizes_of_type, strict=True):
                self.sizes[group] += size
            if max(self.sizes) == sum(self.sizes):
                self.all_in = self.sizes.index(max(self.sizes))
        if self.all_in is None:
            groups = torch.tensor(group_of_type, device=token_types.device)[token_types]
            if sizes_of_type is None:
                self.is_of_group = [groups == group for group in range(num_groups)]
            else:
                self.order = groups.argsort(stable=True)
                self.inverse = self.order.argsort()
        self.num_groups = num_groups

    def split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(T, ...) to one tensor (T_group, ...) a group."""
        if self.all_in is not None:
            return tuple(tokens if group == self.all_in else tokens[:0] for group in range(self.num_groups))
        if self.is_of_group is not None:
            return (tokens,) * self.num_groups
        return tokens.index_select(0, self.order).split(self.sizes)

    def merge(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """One tensor (T_group, ...) a group back to (T, ...)."""
        if self.all_in is not None:
            # With gradients the parameters of groups without tokens stay in the graph.
            return torch.cat(parts) if len(parts) > 1 and torch.is_grad_enabled() else parts[self.all_in]
        if self.is_of_group is not None:
            merged = parts[0]
            for is_of_group, part in zip(self.is_of_group[1:], parts[1:], strict=True):
                merged = torch.where(is_of_group.view(-1, *[1] * (part.ndim - 1)), part, merged)
            return merged
        return torch.cat(parts).index_select(0, self.inverse)

    def map(self, modules: Iterable[Callable], tokens: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(T, ...) to what the module of each token's group, one for each, makes of it: a tensor or several."""
        if self.num_groups == 1:
            (module,) = modules
            return module(tokens)
        outputs = [module(part) for module, part in zip(modules, self.split(tokens), strict=True)]
        if torch.is_tensor(outputs[0]):
            return self.merge(outputs)
        return tuple(self.merge(list(output)) for output in zip(*outputs, strict=True))

    def split_mask(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A boolean mask (T,) to one (T_group,) a group, false at tokens that a group gets but that are another's."""
        parts = self.split(mask)
        if self.is_of_group is None:
            return parts
        return tuple(part & is_of_group for part, is_of_group in zip(parts, self.is_of_group, strict=True))


@dataclass
class TokenLayout:
    """Who handles which token: `pools`, `streams` and `shared_experts` partition them; `shielded` (T, 1), if any,
    marks those whose gradient must not reach the shared expert."""

    pools: TokenGroups
    streams: TokenGroups
    shared_experts: TokenGroups
    shielded: torch.Tensor | None = None


def token_layout(
    config: RosettaConfig, token_types: torch.Tensor, type_of_all: int | None, shield_shared_expert: bool
) -> TokenLayout:
    """
    Reads the layout of `token_types` (T,) off the configuration.

    Args:
        type_of_all (`int`, *optional*): their type, if they are known to be all of one.

    Raises:
        ValueError: if there is no such token type.
    """
    types = config.token_types
    sizes = None
    if type_of_all is not None:
        sizes = [token_types.shape[0] if index == type_of_all else 0 for index in range(len(types))]
    elif not torch.compiler.is_compiling():
        sizes = torch.bincount(token_types, minlength=len(types)).tolist()
        if len(sizes) > len(types):
            raise ValueError(f"`token_type_ids` must be below {len(types)}, got {len(sizes) - 1}.")
    pools, streams, shared_experts = config.pools, config.attention_streams, [*config.shared_experts, None]
    shielded = None
    if shield_shared_expert:
        # Other types' experts warm up first. Where types share their experts too, as in MoE, nothing is shielded.
        pool, expert = types[0]["expert_pool"], types[0]["shared_expert"]
        shields = [t["expert_pool"] != pool and t["shared_expert"] == expert for t in types]
        shielded = torch.tensor(shields, device=token_types.device)[token_types, None]
    return TokenLayout(
        pools=TokenGroups([pools.index(t["expert_pool"]) for t in types], token_types, sizes),
        streams=TokenGroups([streams.index(t["attention_stream"]) for t in types], token_types, sizes),
        shared_experts=TokenGroups([shared_experts.index(t["shared_expert"]) for t in types], token_types, sizes),
        shielded=shielded,
    )


__all__ = ["TokenGroups", "TokenLayout", "token_layout"]
