"""
What transformers calls the cache: `past_key_values`, and from 5.24 on `cache`, in arguments and in outputs. Models
take both names, under any version.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from inspect import signature

from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_outputs import BaseModelOutputWithPast


# The name in the outputs of the installed version.
CACHE = next(field.name for field in fields(BaseModelOutputWithPast) if field.name in ("cache", "past_key_values"))


def cache_of(arguments: dict):
    """The cache among the arguments of a model."""
    return arguments.get("past_key_values") if arguments.get("cache") is None else arguments["cache"]


def takes_cache(forward: Callable) -> Callable:
    """Has a `forward` with `past_key_values` take them as `cache`, too. A paged cache, of continuous batching, stays
    `cache`: it is none of a conversation."""

    @wraps(forward)
    def with_cache(self, *args, **kwargs):
        if "cache" in kwargs and not isinstance(kwargs["cache"], PagedAttentionCache):
            if kwargs.get("past_key_values") is not None and kwargs["cache"] is not None:
                raise ValueError("Give one of `cache` and `past_key_values`, which are the same.")
            kwargs["past_key_values"] = cache_of(kwargs)
            del kwargs["cache"]
        return forward(self, *args, **kwargs)

    with_cache.__signature__ = signature(forward)  # type: ignore[attr-defined]  # `generate` reads it for each token
    return with_cache


__all__ = ["CACHE", "cache_of", "takes_cache"]
