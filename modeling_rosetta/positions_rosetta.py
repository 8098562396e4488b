"""Which image or clip each token belongs to, and the M-RoPE positions that follow from it."""

import torch
import torch.nn.functional as F


def places_of(of_source: torch.Tensor, number: int, source: str) -> torch.Tensor:
    """
    Where the `number` embeddings of a batch key `source` go among the T tokens: `of_source` (T,) is true there.

    Raises:
        ValueError: if there are not as many places; while a graph is compiled they cannot be counted.
    """
    if torch.compiler.is_compiling():
        return torch.nonzero_static(of_source, size=number).squeeze(-1)
    places = of_source.nonzero().squeeze(-1)
    if len(places) != number:
        raise ValueError(f"`{source}` gives {number} embeddings, but the sequence has {len(places)} places for them.")
    return places


def image_index(token_type_ids: torch.Tensor, token_type: int, tokens_per_image: torch.Tensor) -> torch.Tensor:
    """
    Number of the image that each token of one type belongs to.

    Args:
        token_type_ids (`torch.LongTensor` of shape `(B, S)`)
        token_type (`int`): the type whose tokens are images.
        tokens_per_image (`torch.LongTensor` of shape `(I,)`): images in the order of their tokens, row after row.

    Returns:
        `torch.LongTensor` of shape `(B, S)`: 0 to I - 1 at tokens of the type, -1 elsewhere.

    Raises:
        ValueError: if the images do not have as many tokens as there are positions for them; while a graph is
            compiled they cannot be counted.
    """
    of_type = token_type_ids == token_type
    if torch.compiler.is_compiling():  # which image a token is of is then read off the number of tokens before it
        before = of_type.flatten().cumsum(0) - 1
        ends = tokens_per_image.to(token_type_ids.device).cumsum(0)
        image = torch.searchsorted(ends, before, right=True).view_as(of_type)
        return torch.where(of_type, image, -1)
    images = torch.arange(len(tokens_per_image), device=token_type_ids.device)
    owners = images.repeat_interleave(tokens_per_image.to(token_type_ids.device))
    positions = int(of_type.sum())
    if positions != len(owners):
        raise ValueError(
            f"`token_type_ids` has {positions} positions of type {token_type}, but the images given for that type "
            f"have {len(owners)} tokens."
        )
    return torch.full_like(token_type_ids, -1).masked_scatter(of_type, owners)


def clip_index(
    token_type_ids: torch.Tensor, token_type: int, sequence_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Number of the clip that each token of one type belongs to: its tokens that stand side by side in one sample.

    Args:
        token_type_ids (`torch.LongTensor` of shape `(B, S)`)
        token_type (`int`)
        sequence_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): packed sample numbers.

    Returns:
        `torch.LongTensor` of shape `(B, S)`: 0, 1, ... at tokens of the type, row after row; -1 elsewhere.
    """
    of_type = token_type_ids == token_type
    continues = F.pad(of_type[:, :-1], (1, 0), value=False)
    if sequence_ids is not None:
        continues = continues & F.pad(sequence_ids[:, 1:] == sequence_ids[:, :-1], (1, 0), value=False)
    number = (of_type & ~continues).flatten().cumsum(0).view_as(of_type) - 1
    return torch.where(of_type, number, -1)


def get_rope_index(
    token_type_ids: torch.Tensor,
    image_grids: dict[int, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    drafts: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    M-RoPE positions. Text advances by one and has t = h = w. An image that starts at s has t = s, h = s + row and
    w = s + column, and the text after it goes on at s + max(height, width).

    Args:
        token_type_ids (`torch.LongTensor` of shape `(B, S)`)
        image_grids (`dict[int, torch.LongTensor]`): for each token type that is an image, the grids `(I, 2)` of its
            images: height and width in tokens, in the order of the tokens.
        attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): padding (0) does not advance.
        drafts (`torch.LongTensor` of shape `(B, S)`, *optional*): see [`without_place`].

    Returns:
        `torch.LongTensor` of shape `(3, B, S)`.

    Raises:
        ValueError: if the images do not have as many tokens as there are positions for them.
    """
    advance = torch.ones_like(token_type_ids) if attention_mask is None else attention_mask.to(token_type_ids.dtype)
    offsets = torch.zeros(3, *token_type_ids.shape, dtype=torch.long, device=token_type_ids.device)
    for token_type, grid_hw in image_grids.items():
        sizes = grid_hw.to(token_type_ids.device).prod(-1)
        image = image_index(token_type_ids, token_type, sizes)
        if len(grid_hw) == 0:
            continue
        of_type, owner = image >= 0, image.clamp(min=0)
        height, width = grid_hw.to(token_type_ids.device)[owner].unbind(-1)
        number = of_type.flatten().cumsum(0).view_as(image) - 1
        place = number - (sizes.cumsum(0) - sizes)[owner]
        last = place == height * width - 1
        advance = torch.where(of_type, torch.where(last, torch.maximum(height, width), 0), advance)
        offsets[1] = torch.where(of_type, place // width, offsets[1])
        offsets[2] = torch.where(of_type, place % width, offsets[2])
    start = advance.cumsum(-1) - advance - without_place(advance, drafts)
    return start + offsets


def without_place(advance: torch.Tensor, drafts: torch.Tensor | None) -> torch.Tensor:
    """
    How far the positions of tokens fall behind, since the drafts before them take no place.

    Args:
        advance (`torch.LongTensor` of shape `(B, S)`): how far each token moves on what stands behind it.
        drafts (`torch.LongTensor` of shape `(B, S)`, *optional*): the draft that each token is of, else
            -1, see [`~latent_roles_rosetta.draft_index`].

    Returns:
        `torch.LongTensor` of shape `(B, S)`: within a draft that of its start.
    """
    if drafts is None:
        return torch.zeros_like(advance)
    is_draft = drafts >= 0
    of_drafts = advance * is_draft
    before = of_drafts.cumsum(-1) - of_drafts
    return before.masked_fill(is_draft, 0).cummax(-1).values


def positions_in_sequence(sequence_ids: torch.Tensor) -> torch.Tensor:
    """Packed sample numbers (B, S) to positions that start at 0 in each sample: how the mask tells them apart."""
    position = torch.arange(sequence_ids.shape[1], device=sequence_ids.device).expand_as(sequence_ids)
    starts = F.pad(sequence_ids[:, 1:] != sequence_ids[:, :-1], (1, 0), value=True)
    return position - (position * starts).cummax(-1).values


def packed_sequences(position_ids: torch.Tensor) -> torch.Tensor | None:
    """
    Packed sample numbers that restarting positions tell, as transformers' padding-free collators give them.

    Args:
        position_ids (`torch.LongTensor` of shape `(B, S)` or `(3, B, S)`): a sample of the first kind, text, ends
            where a position does not follow the one before it; one of the second where time goes back, or all three
            are at 0 again.

    Returns:
        `torch.LongTensor` of shape `(B, S)`, or `None` if each row is one sample.
    """
    if position_ids.ndim == 2:
        starts = position_ids.diff(dim=-1) != 1
    else:
        starts = (position_ids[0].diff(dim=-1) < 0) | (position_ids[..., 1:] == 0).all(0)
    if not torch.compiler.is_compiling() and not starts.any():
        return None
    return F.pad(starts.cumsum(-1), (1, 0))


__all__ = [
    "clip_index",
    "get_rope_index",
    "image_index",
    "packed_sequences",
    "places_of",
    "positions_in_sequence",
    "without_place",
]
