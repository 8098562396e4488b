"""
What the images among the latents are for.

An image to draw is noisy in training, but what stands behind it sees it clean, as in inference, where it is drawn
before anything goes on. There it stands twice: a draft, which only itself sees and which takes no place in the
sequence, and its clean copy in the same place.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .positions_rosetta import image_index


COPY = -1  # of the draft before it, clean
CONTEXT = 0  # clean
DRAWN = 1
DRAFT = 2
EMPTY = 3  # to draw, of a size, in inference


def is_drawn(latent_roles: torch.Tensor) -> torch.Tensor:
    """Which images `(I,)` have a velocity to predict."""
    return latent_roles > 0


def has_latents(latent_roles: torch.Tensor) -> torch.Tensor:
    """Which images `(I,)` a batch of the processor has latents or pixels of."""
    return (latent_roles != COPY) & (latent_roles != EMPTY)


def draft_index(
    token_type_ids: torch.Tensor,
    latent_type: int | None,
    latent_grid_hw: torch.Tensor | None,
    latent_roles: torch.Tensor | None,
    is_time: torch.Tensor | None,
) -> torch.Tensor | None:
    """
    Number of the draft that each token belongs to: its latents, and the timestep token before them.

    Args:
        token_type_ids (`torch.LongTensor` of shape `(B, S)`)
        latent_type (`int`): the type of the latents.
        latent_grid_hw (`torch.LongTensor` of shape `(I, 2)`)
        latent_roles (`torch.LongTensor` of shape `(I,)`, *optional*)
        is_time (`torch.BoolTensor` of shape `(B * S,)`, *optional*): which are timestep tokens.

    Returns:
        `torch.LongTensor` of shape `(B, S)`: the number of its image, -1 elsewhere; `None` if there are no drafts.
    """
    if latent_roles is None or not (latent_roles == DRAFT).any():
        return None
    image = image_index(token_type_ids, latent_type, latent_grid_hw.prod(-1))
    drafts = torch.where((latent_roles == DRAFT).to(image.device)[image.clamp(min=0)], image, -1)
    if is_time is None:
        return drafts
    following = F.pad(drafts[:, 1:], (0, 1), value=-1)
    return torch.where(is_time.view_as(drafts), following, drafts)


def seen_by_itself(drafts: torch.Tensor) -> Callable:
    """A mask function, as transformers combines them: what is of a draft `(B, K)` is seen by the same draft only."""

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        draft = drafts[batch_idx, kv_idx]
        return (draft < 0) | (draft == drafts[batch_idx, q_idx])

    return inner_mask


def with_copies(latents: torch.Tensor, latent_grid_hw: torch.Tensor, latent_roles: torch.Tensor | None):
    """
    The latents of all images, those of copies repeated from their drafts.

    Args:
        latents (`torch.Tensor` of shape `(L', C)`): of all images but the copies.
        latent_grid_hw (`torch.LongTensor` of shape `(I, 2)`)
        latent_roles (`torch.LongTensor` of shape `(I,)`, *optional*)

    Returns:
        `torch.Tensor` of shape `(L, C)`.
    """
    if latent_roles is None or not (latent_roles == COPY).any():
        return latents
    sizes, is_copy = latent_grid_hw.prod(-1).tolist(), (latent_roles == COPY).tolist()
    given = iter(latents.split([size for size, copy in zip(sizes, is_copy, strict=True) if not copy]))
    images: list[torch.Tensor] = []
    for copy in is_copy:
        images.append(images[-1] if copy else next(given))
    return torch.cat(images)


__all__ = [
    "CONTEXT",
    "COPY",
    "DRAFT",
    "DRAWN",
    "EMPTY",
    "draft_index",
    "has_latents",
    "is_drawn",
    "seen_by_itself",
    "with_copies",
]
