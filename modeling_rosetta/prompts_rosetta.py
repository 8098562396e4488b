"""The prompts of a drawing: their rows of tokens, and their keys and values, which are computed once."""

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from .cache_names_rosetta import CACHE
from .latent_codec_rosetta import MEDIA_KEYS, with_latents
from .latent_roles_rosetta import EMPTY
from .positions_rosetta import get_rope_index


Encoded = tuple[torch.Tensor, torch.Tensor]  # as `prompt_embeds` and `prompt_embeds_mask`
NO_OTHERS = (
    "`negative_prompt_embeds` or `negative_prompt` must be given beside `prompt_embeds` for guidance: `encode_prompt` "
    "returns both."
)
ROWS = ("input_ids", "token_type_ids", "attention_mask", "latent_grid_hw")
GRIDS = "latent_grid_hw"


class Prompts:
    """
    What the steps of a drawing read: a row of each prompt, and one of each that guidance leads away from. Either are
    read by the transformer when a step first needs them, and then kept.

    Args:
        transformer ([`RosettaForCausalLMAndImageGeneration`])
        rows (`dict`): from the processor, of N prompts and then of N others, and perhaps of N without images; with the
            images that are drawn from; on one device.
        vision_start_token_id (`int`): of the token that an image starts with.
        num_images_per_prompt (`int`): how often a step repeats each row.
        encoded (`tuple`): for either kind of rows, their keys and values if they are known, as [`Prompts.encode`]
            returns them.
        has_others (`bool`): whether it is known what guidance leads away from.
        num_kinds (`int`): of rows; 3 for guidance by images.
    """

    def __init__(
        self,
        transformer,
        rows: dict[str, torch.Tensor],
        vision_start_token_id: int,
        num_images_per_prompt: int = 1,
        encoded: tuple[Encoded | None, Encoded | None] = (None, None),
        has_others: bool = True,
        num_kinds: int = 2,
    ):
        self.transformer, self.num_images_per_prompt, self.has_others = transformer, num_images_per_prompt, has_others
        self.num_kinds = num_kinds
        grids = transformer.get_decoder().image_grids(rows.get("image_grid_thw"), rows[GRIDS])  # PEFT's hand it on
        self.position_ids = get_rope_index(rows["token_type_ids"], grids, rows["attention_mask"]).chunk(num_kinds, 1)
        roles = rows.get("latent_roles", torch.full_like(rows[GRIDS][:, 0], EMPTY))
        self._media = {
            key: rows[key].chunk(2) for key in MEDIA_KEYS if key in rows
        }  # rows without images are the last
        if (roles != EMPTY).any():
            self._media[GRIDS] = rows[GRIDS][roles != EMPTY].chunk(2)
        self.rows = {key: rows[key].chunk(num_kinds) for key in ROWS[:3]}
        self.rows[GRIDS] = rows[GRIDS][roles == EMPTY].chunk(num_kinds)
        # Padding on the left puts the images of all rows at the same columns.
        self.end_of_prompt, self.start, self.end = image_columns(
            rows, rows[GRIDS][-1], transformer.config, vision_start_token_id
        )
        self._encoded = [None if given is None else _unpack(given[0], transformer) for given in (*encoded, None)]
        self._read: list[list | None] = [None] * num_kinds  # keys and values of all that comes before `start`
        self._inputs: tuple[bool | None, dict] = (None, {})

    @property
    def num_prompts(self) -> int:
        return len(self.rows["latent_grid_hw"][0])

    @property
    def grid_hw(self) -> list[int]:
        """Height and width of each image in tokens."""
        return self.rows["latent_grid_hw"][0][0].tolist()

    def inputs(self, is_guided: bool) -> dict:
        """What a step gives to the transformer: the tokens from the first that depends on the time to the last of the
        image, and the keys and values of those before them. With guidance, the other rows come after the prompts'."""
        if self._inputs[0] != is_guided:
            if is_guided and not self.has_others:
                raise ValueError(NO_OTHERS)
            kinds = [*range(self.num_kinds)] if is_guided else [0]
            self._read_to(self.start, [kind for kind in kinds if self._read[kind] is None])
            repeats = self.num_images_per_prompt
            inputs = {
                "input_ids": self._columns("input_ids", kinds, self.start, self.end),
                "token_type_ids": self._columns("token_type_ids", kinds, self.start, self.end),
                "attention_mask": self._columns("attention_mask", kinds, 0, self.end),
                "latent_grid_hw": torch.cat([self.rows["latent_grid_hw"][kind] for kind in kinds]),
            }
            inputs = {key: value.repeat_interleave(repeats, dim=0) for key, value in inputs.items()}
            positions = torch.cat([self.position_ids[kind] for kind in kinds], dim=1)[..., self.start : self.end]
            cache = _cache(self.transformer, [self._read[kind] for kind in kinds])
            cache.batch_repeat_interleave(repeats)
            inputs |= {"position_ids": positions.repeat_interleave(repeats, dim=1), "past_key_values": cache}
            self._inputs = (is_guided, inputs)
        return self._inputs[1]

    def encode(self, is_guided: bool = False) -> list[Encoded]:
        """The keys and values of the prompts, and with guidance of the others, as a tensor `(N, P, 2 * layers * heads
        * head_dim)` of the P tokens before the image, with a mask `(N, P)` which of these are none."""
        kinds = [0, 1] if is_guided else [0]
        if all(self._read[kind] is None for kind in kinds):
            self._read_to(self.end_of_prompt, kinds)
        return [
            (
                _pack(self._read[kind], self.end_of_prompt),
                self._columns("attention_mask", [kind], 0, self.end_of_prompt),
            )
            for kind in kinds
        ]

    def replace(self, given: torch.Tensor | None, returned: torch.Tensor | None):
        """Goes on with the `prompt_embeds` that a callback has returned for those it was given. Those that diffusers'
        own leave of several rows, when they end guidance, are none: the rows of guidance are not among them here."""
        if given is None or returned is None or returned.shape != given.shape:
            return
        if returned.data_ptr() != given.data_ptr():
            self._encoded[0], self._read[0], self._inputs = _unpack(returned, self.transformer), None, (None, {})

    def _read_to(self, end: int, kinds: list[int]):
        """Runs the transformer over the columns before `end`, all rows that nothing is known of at once."""
        unknown = [k for k in kinds if self._encoded[k] is None]
        for together in (unknown, *([k] for k in kinds if self._encoded[k])):
            if not together:
                continue
            known = self._encoded[together[0]]
            start = 0 if known is None else known[0][0].shape[2]
            cache = None if known is None else _cache(self.transformer, [known])
            cache = self.transformer(
                input_ids=self._columns("input_ids", together, start, end),
                token_type_ids=self._columns("token_type_ids", together, start, end),
                attention_mask=self._columns("attention_mask", together, 0, end),
                position_ids=torch.cat([self.position_ids[kind] for kind in together], dim=1)[..., start:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **self._media_of(together if known is None else []),
            )[CACHE]
            layers = [(layer.keys.chunk(len(together)), layer.values.chunk(len(together))) for layer in cache.layers]
            for place, kind in enumerate(together):
                self._read[kind] = [(keys[place], values[place]) for keys, values in layers]

    def _media_of(self, kinds: list[int]) -> dict[str, torch.Tensor]:
        """The images of the rows of these kinds; those of the third have none."""
        kinds = [kind for kind in kinds if kind < 2]
        return {key: torch.cat([parts[kind] for kind in kinds]) for key, parts in self._media.items() if kinds}

    def _columns(self, key: str, kinds: list[int], start: int, end: int) -> torch.Tensor:
        return torch.cat([self.rows[key][kind] for kind in kinds])[:, start:end]


def image_columns(
    rows: dict[str, torch.Tensor], grid_hw: torch.Tensor, config, vision_start_token_id: int
) -> tuple[int, int, int]:
    """Where the prompt ends and the image's marks start, and where the tokens start and end that change with time; the
    image is the last one, and has this grid."""
    ids, types = rows["input_ids"][0], rows["token_type_ids"][0]
    end = int((types == config.token_type_index("noisy_latents")).nonzero()[-1]) + 1
    start = end - int(grid_hw.prod())
    if config.timestep_token_id is not None:
        start -= int(ids[start - 1] == config.timestep_token_id)
    return int((ids[:start] == vision_start_token_id).nonzero()[-1]), start, end


def lay_out(
    pipe,
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    height: int | None,
    width: int | None,
    system_prompt: str | None,
    max_sequence_length: int,
    encoded: tuple[tuple, tuple] = ((None, None), (None, None)),
    num_images_per_prompt: int = 1,
    sources=None,
) -> Prompts:
    """The [`Prompts`] of a drawing, on the device that the pipeline `pipe` runs on; the arguments are its call's."""
    processor, config, start = pipe.processor, pipe.transformer.config, pipe.processor.vision_start_token_id
    height, width = (int(side) if isinstance(side, np.integer) else side for side in (height, width))
    images, guides_by_images = (None, False) if sources is None else (sources.read, sources.guide)
    is_known = [given[0] is not None for given in encoded]
    texts = [""] * len(encoded[0][0]) if is_known[0] else prompt
    rows = processor.draw_prompt(
        texts,
        height,
        width,
        negative_prompt,
        system_prompt=system_prompt,
        images=images,
        guides_by_images=guides_by_images,
    )
    before = image_columns(rows, rows[GRIDS][-1], config, start)[1]
    is_text = (rows["attention_mask"] == 1) & (rows["token_type_ids"] == 0)
    length = before if images is None else int(is_text[:, :before].sum(-1).max())
    if length > max_sequence_length:
        raise ValueError(
            f"`prompt` and `negative_prompt` may have {max_sequence_length} tokens with their markup "
            f"(`max_sequence_length`), got {length}."
        )
    known: tuple = tuple(given if given[0] is not None else None for given in encoded)
    if any(is_known):
        rows, known = _rows_of_encoded(rows, known, config, start, processor.tokenizer.pad_token_id)
    rows = with_latents({key: value.to(pipe._execution_device) for key, value in rows.items()}, pipe.vae)
    has_others = is_known[1] or not is_known[0] or negative_prompt is not None
    return Prompts(
        pipe.transformer, rows, start, num_images_per_prompt, known, has_others, 3 if guides_by_images else 2
    )


def _rows_of_encoded(
    rows: dict[str, torch.Tensor],
    encoded: tuple[Encoded | None, ...],
    config,
    vision_start_token_id: int,
    pad_token_id: int,
) -> tuple[dict[str, torch.Tensor], list[Encoded | None]]:
    """
    Rows in which known keys and values stand in place of the prompts.

    Args:
        rows (`dict`): of N prompts and N others; of those that are known all but their prompts counts.
        encoded (`tuple`): for either kind, what [`Prompts.encode`] returned or `None`.
        config ([`RosettaConfig`])
        vision_start_token_id, pad_token_id (`int`)

    Returns:
        The rows, and `encoded` padded to their columns.
    """
    end = image_columns(rows, rows[GRIDS][-1], config, vision_start_token_id)[0]
    widths = [end if given is None else given[0].shape[1] for given in encoded]
    width, kinds = max(widths), []
    for kind, given in enumerate(encoded):
        of_kind = {key: rows[key].chunk(2)[kind] for key in ROWS}
        prompt = {key: of_kind[key][:, :end] for key in ROWS[:3]}
        if given is not None:
            mask = given[1].to(of_kind["attention_mask"])
            prompt = {"input_ids": mask * 0 + pad_token_id, "token_type_ids": mask * 0, "attention_mask": mask}
        padding = (width - prompt["input_ids"].shape[1], 0)
        for key, value in prompt.items():
            value = torch.nn.functional.pad(value, padding, value=pad_token_id if key == "input_ids" else 0)
            of_kind[key] = torch.cat([value, of_kind[key][:, end:]], dim=1)
        kinds.append(of_kind)
    padded = [
        None if given is None else (torch.nn.functional.pad(given[0], (0, 0, width - given[0].shape[1], 0)), given[1])
        for given in encoded
    ]
    return {key: torch.cat([of_kind[key] for of_kind in kinds]) for key in ROWS}, padded


def encoded_size(config) -> int:
    """How many numbers are kept of a token: keys and values of all heads of all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _pack(layers: list[tuple[torch.Tensor, torch.Tensor]], length: int) -> torch.Tensor:
    both = torch.stack([torch.stack([part[:, :, :length] for part in layer], dim=1) for layer in layers], dim=1)
    return both.permute(0, 4, 1, 2, 3, 5).flatten(2)


def _unpack(packed: torch.Tensor, transformer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    config = transformer.config
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim)
    layers = packed.to(transformer.device, transformer.dtype).unflatten(2, shape).permute(2, 3, 0, 4, 1, 5)
    return [tuple(layer) for layer in layers]


def _cache(transformer, kinds: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> DynamicCache:
    cache = DynamicCache(config=transformer.config)
    for index, layers in enumerate(zip(*kinds, strict=True)):
        cache.update(*(torch.cat(parts) for parts in zip(*layers, strict=True)), index)
    return cache


__all__ = ["NO_OTHERS", "Prompts", "encoded_size", "image_columns", "lay_out"]
