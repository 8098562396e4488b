"""The processes that share an evaluation, however they were started."""

import torch.distributed


def rank_and_size() -> tuple[int, int]:
    """Which process this is, and of how many."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gathered(found: dict) -> dict:
    """What all ranks have found, on each of them."""
    size = rank_and_size()[1]
    if size == 1:
        return found
    of_ranks: list[dict] = [{}] * size
    torch.distributed.all_gather_object(of_ranks, found)
    return {key: value for of_rank in of_ranks for key, value in of_rank.items()}


__all__ = ["gathered", "rank_and_size"]
