"""Attention that leaves out the keys that a mask hides, on devices where no kernel does so."""

import torch


QUERIES_PER_BLOCK = 192


def visible_blocks(attention_mask) -> list[tuple[slice, slice]] | None:
    """
    Blocks of queries, each with the stretch of keys outside which it sees nothing. On a CPU, attention with a dense
    mask computes the hidden products too; block by block it saves most of them.

    Args:
        attention_mask: boolean mask `(B, 1, S, K)`, true where a query sees a key. For any other, for short ones, in
            a compiled graph, and on devices that have flex attention or better use for one large product, there is
            nothing to split.

    Returns:
        Pairs of a slice of the S queries and a slice of the K keys, or `None`.
    """
    if not torch.is_tensor(attention_mask) or attention_mask.dtype != torch.bool or torch.compiler.is_compiling():
        return None
    num_queries = attention_mask.shape[2]
    if attention_mask.device.type != "cpu" or num_queries <= QUERIES_PER_BLOCK:
        return None
    blocks = []
    for start in range(0, num_queries, QUERIES_PER_BLOCK):
        queries = slice(start, start + QUERIES_PER_BLOCK)
        visible = attention_mask[:, 0, queries].any(0).any(0).nonzero().flatten().tolist() or [0]
        blocks.append((queries, slice(visible[0], visible[-1] + 1)))
    return blocks


__all__ = ["visible_blocks"]
