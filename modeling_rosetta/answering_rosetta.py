"""One answer of text and images: the model writes, opens an image, the flow fills it, and the text goes on."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from .cache_names_rosetta import CACHE
from .drawing_checks_rosetta import check_answer, grid_of
from .flow_scheduler_rosetta import in_use, set_times
from .latent_codec_rosetta import decode_latents, encode_images
from .source_images_rosetta import noise_of


# Batch keys of what images are embedded from, their grids, what else has an entry for each image.
SOURCES = (("pixel_values", "image_grid_thw", ("image_is_causal",)), ("latents", "latent_grid_hw", ()))
ROW_KEYS = ("input_ids", "token_type_ids", "attention_mask")


@torch.no_grad()
def answer(
    pipe,
    conversation: list[dict] | list[list[dict]],
    max_new_tokens: int = 256,
    max_images: int = 4,
    min_images: int = 0,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    sees_drawings: bool = False,
    on_item: Callable[[int, dict], None] | None = None,
    **generation,
) -> dict | list[dict]:
    r"""
    Args:
        pipe ([`RosettaPipeline`])
        conversation (`list[dict]`, or a list of B of them): as for [`RosettaProcessor.apply_chat_template`]; the last
            message is the user's. What was drawn before, as this returns it, is read again.
        max_new_tokens (`int`, defaults to 256): the most tokens of text of an answer.
        max_images (`int`, defaults to 4): the most images of an answer.
        min_images (`int`, defaults to 0): as long as it has fewer, an answer opens an image where it would end.
        height, width (`int`, *optional*): of the images in pixels; by default the processor's `base_size`.
        num_inference_steps (`int`, defaults to 50): of each image.
        guidance_scale (`float`, defaults to 1.0): above 1, each image is guided away from what it would be without the
            text of the user; all that comes before it is then read once more for it.
        generator (`torch.Generator` or a list with one for each conversation, *optional*): for the noise. Text that is
            sampled follows torch's own seed.
        sees_drawings (`bool`, defaults to `False`): reads the ViT tokens of an image that was drawn after it, too.
        on_item (`Callable`, *optional*): called with the number of the conversation and an item, as soon as it is
            there: a piece of text or an image.
        generation: of `generate`, e.g. `do_sample`, `temperature` and `stop_strings`.

    Returns:
        `dict`: the assistant's message; its `content` are items `{"type": "text", "text": str}` and
        `{"type": "latents", "latents": Tensor (C, h, w), "image": PIL.Image.Image}`, and with `sees_drawings` behind
        each of the latter the `image` to understand. A list of B messages for B conversations.

    Raises:
        ValueError: before any work, if an argument or the conversation is not valid, or the pipeline lacks a part.
        RuntimeError: if a drawing with this pipeline's scheduler has not ended.
    """
    is_batch = isinstance(conversation, list | tuple) and any(isinstance(part, list | tuple) for part in conversation)
    conversations = list(conversation) if is_batch else [conversation]
    grid_hw = grid_of(pipe.processor, height, width)
    check_answer(
        pipe, max_new_tokens, max_images, min_images, num_inference_steps, generator, len(conversations), sees_drawings
    )
    with in_use(pipe.scheduler):
        writer = _Answer(pipe, conversations, generator, on_item)
        while len(writer.rows):
            can_open = writer.num_images < max_images
            writer.write(max_new_tokens, can_open, writer.num_images < min_images, generation)
            if len(writer.rows):
                writer.draw(grid_hw, num_inference_steps, guidance_scale, sees_drawings)
    pipe.maybe_free_model_hooks()
    messages = [{"role": "assistant", "content": content} for content in writer.contents]
    return messages if is_batch else messages[0]


def stream_answer(pipe, conversation, **arguments) -> Iterator[dict] | Iterator[tuple[int, dict]]:
    """
    The items of [`answer`] one after another, text in pieces, as they come; for several conversations each with the
    number of its own. Whoever stops listening stops the answer at its next item.

    Args:
        pipe, conversation, arguments: as of [`answer`].
    """
    is_batch = isinstance(conversation, list | tuple) and any(isinstance(part, list | tuple) for part in conversation)
    items: queue.Queue = queue.Queue()
    left = threading.Event()

    def put(number: int, item: dict):
        if left.is_set():
            raise _Left
        items.put((number, item))

    def run():
        try:
            answer(pipe, conversation, **arguments, on_item=put)
        except BaseException as error:  # raised where it is listened to
            items.put((None, error))
        else:
            items.put((None, None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (found := items.get())[0] is not None:
            yield found if is_batch else found[1]
        if found[1] is not None:
            raise found[1]
    finally:
        left.set()
        thread.join()


class _Left(Exception):
    """Nobody listens any more."""


class _Answer:
    """
    Answers that are being written, and their one cache. All that go on stand at the same place after each round: they
    have written until each has opened an image, or was finished and left the batch.

    Attributes:
        rows (`list[int]`): the numbers of the conversations that go on.
        contents (`list[list[dict]]`): what each has said.
        num_images (`int`): that each of `rows` has drawn.
    """

    def __init__(self, pipe, conversations: list[list[dict]], generator, on_item: Callable | None):
        self.pipe, self.model, self.processor, self.on_item = pipe, pipe.transformer, pipe.processor, on_item
        self.device, self.generator = pipe._execution_device, generator
        batch = self.processor.apply_chat_template(
            [self.processor.with_latents_of_images(talk, self._encode) for talk in conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        batch = {key: value.to(self.device) for key, value in batch.items()}
        self.inputs = {key: batch.pop(key) for key in ROW_KEYS}
        self.unread = batch  # images whose tokens are not in the cache yet
        self.images = _images_of_rows(batch, self.inputs["token_type_ids"], self.model.config)
        self.rows = list(range(len(conversations)))
        self.contents: list[list[dict]] = [[] for _ in conversations]
        self.num_tokens = [0] * len(conversations)
        self.num_images, self.cache = 0, cast(Any, None)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return encode_images(self.pipe.vae, pixels.to(self.device))

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    def write(self, max_new_tokens: int, can_open: bool, must_open: bool, generation: dict):
        """Writes until each row has opened an image, or is finished and leaves."""
        processor, length = self.processor, self.length
        opens, pad = processor.vision_start_token_id, processor.tokenizer.pad_token_id
        ends = {processor.turn_end_token_id, processor.tokenizer.eos_token_id} - {None}
        stops = {*ends, opens} if can_open else ends
        forbidden = {*processor._vision_token_ids, processor.turn_start_token_id, processor.cfg_token_id}
        room = [max_new_tokens - self.num_tokens[row] for row in self.rows]
        new = self.inputs["input_ids"][:, :0]
        if max(room) > 0:
            if generation.get("stop_strings"):
                generation = {**generation, "tokenizer": processor.tokenizer}
            output = self.model.generate(
                **self.inputs,
                **self.unread,
                **{CACHE: self.cache},
                max_new_tokens=max(room),
                eos_token_id=[*stops],
                suppress_tokens=[*(forbidden - stops - {None})],
                pad_token_id=pad,
                return_dict_in_generate=True,
                streamer=None if self.on_item is None else AnswerStreamer(self, stops, room),
                **{"do_sample": False, **generation},
            )
            self.cache, self.unread, new = output[CACHE], {}, output.sequences[:, length:]
        said = [_said(tokens, stops, pad, own) for tokens, own in zip(new.tolist(), room, strict=True)]
        self._append(new, [len(tokens) for tokens in said])
        is_open = [opens in tokens for tokens in said]
        for row, tokens in zip(self.rows, said, strict=True):
            text = [token for token in tokens if token not in stops]
            self.num_tokens[row] += len(text)
            if text:
                self.contents[row].append({"type": "text", "text": processor.tokenizer.decode(text)})
        if must_open and not all(is_open):  # the end of an answer that must go on was none
            for i, tokens in enumerate(said):
                if tokens and tokens[-1] in ends:
                    self.inputs["attention_mask"][i, length + len(tokens) - 1] = 0
            column = torch.full((len(self.rows), 1), opens, device=self.device)
            self._append(column, [0 if opened else 1 for opened in is_open])
        elif not all(is_open):
            self._keep([i for i, opened in enumerate(is_open) if opened])

    def draw(self, grid_hw: list[int], num_steps: int, guidance_scale: float, sees_drawings: bool):
        """Every row has opened an image: fills it, and leaves it in the cache, clean."""
        number, num_tokens = len(self.rows), grid_hw[0] * grid_hw[1]
        prefix = self.processor._prefix(*(side * self.processor.latent_patch_size for side in grid_hw))
        self._append_ids(prefix[:-1])
        self._read()
        caches = [self.cache, self._read_without_text()] if guidance_scale > 1 else [self.cache]
        ids = torch.tensor(prefix[-1:] + [self.processor.image_token_id] * num_tokens, device=self.device)
        types = torch.full_like(ids, self.model.config.token_type_index("noisy_latents"))
        types[: len(ids) - num_tokens] = self.processor.latent_prefix_type
        self._append(ids.expand(number, -1), [len(ids)] * number, types)
        grids = torch.tensor([grid_hw] * number, device=self.device)

        def velocity(cache, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            output = self.model(
                input_ids=self.inputs["input_ids"][:, -len(ids) :],
                token_type_ids=self.inputs["token_type_ids"][:, -len(ids) :],
                attention_mask=self.inputs["attention_mask"],
                noisy_latents=latents.flatten(2).transpose(1, 2).flatten(0, 1),
                latent_grid_hw=grids,
                timesteps=sigma.to(self.device).expand(number),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).velocity
            return output.float().unflatten(0, (number, -1)).transpose(1, 2).unflatten(2, grid_hw)

        scheduler, generator = self.pipe.scheduler, self.generator
        set_times(scheduler, num_steps, None, None, num_tokens, self.device)
        if isinstance(generator, list | tuple):
            generator = [generator[row] for row in self.rows]
        latents = noise_of(self.pipe, number, grid_hw, generator, None)
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            velocities = []
            for cache in caches:
                velocities.append(velocity(cache, latents, sigma))
                cache.crop(-len(ids))
            # The conditional one, led away from the other one, if there is one.
            step = velocities[-1] + (guidance_scale if len(caches) > 1 else 1) * (velocities[0] - velocities[-1])
            latents = scheduler.step(step, timestep, latents, return_dict=False)[0]
        velocity(self.cache, latents, torch.zeros(()))  # which leaves the clean image in the cache
        self._append_ids([self.processor.vision_end_token_id])
        for i, row in enumerate(self.rows):
            self._add_images(row, {"latents": latents[i].flatten(1).T, "latent_grid_hw": grids[i : i + 1]})
        self._show(latents, sees_drawings)
        self.num_images += 1

    def _show(self, latents: torch.Tensor, sees_drawings: bool):
        """The images as items, and with `sees_drawings` read as images to understand."""
        images = self.pipe.image_processor.postprocess(decode_latents(self.pipe.vae, latents), output_type="pil")
        for row, latent, image in zip(self.rows, latents, images, strict=True):
            items = [{"type": "latents", "latents": latent.cpu(), "image": image}]
            items += [{"type": "image", "image": image, "embeds_from": ["pixel_values"]}] * sees_drawings
            self.contents[row] += items
            for item in items if self.on_item is not None else []:
                self.on_item(row, item)
        if not sees_drawings:
            return
        vision = dict(self.processor.image_processor(images, return_tensors="pt").to(self.device))
        count = int(vision["image_grid_thw"][0].prod()) // self.processor.image_processor.merge_size**2
        self._append_ids([self.processor.vision_start_token_id])
        ids = torch.full((len(images), count), self.processor.image_token_id, device=self.device)
        types = torch.full_like(ids, self.model.config.token_type_index("pixel_values"))
        self._append(ids, [count] * len(images), types)
        self.unread = vision
        self._read()
        pixels = vision["pixel_values"].chunk(len(images))
        for row, own, grid in zip(self.rows, pixels, vision["image_grid_thw"], strict=True):
            self._add_images(row, {"pixel_values": own, "image_grid_thw": grid[None]})
        self._append_ids([self.processor.vision_end_token_id])

    def _add_images(self, row: int, new: dict[str, torch.Tensor]):
        before = self.images[row]
        self.images[row] = {**before, **{k: torch.cat([before[k], v]) if k in before else v for k, v in new.items()}}

    def _append_ids(self, ids: list[int]):
        column = torch.tensor(ids, device=self.device, dtype=torch.long).expand(len(self.rows), -1)
        self._append(column, [len(ids)] * len(self.rows))

    def _append(self, ids: torch.Tensor, lengths: list[int], types: torch.Tensor | int = 0):
        """Adds columns, of which in each row the first are real."""
        real = torch.arange(ids.shape[1], device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        new = (ids, torch.zeros_like(ids) + types, real.long())
        self.inputs = {key: torch.cat([self.inputs[key], own], 1) for key, own in zip(ROW_KEYS, new, strict=True)}

    def _read(self):
        """Takes all columns into the cache."""
        start = 0 if self.cache is None else self.cache.get_seq_length()
        self.cache = self.model(
            **{key: self.inputs[key][:, start:] for key in ROW_KEYS[:2]},
            attention_mask=self.inputs["attention_mask"],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self.unread,
        )[CACHE]
        self.unread = {}

    def _read_without_text(self):
        """A cache of all columns with `<｜cfg｜>` in place of the user's text, with all images."""
        user = [self.processor._user_tokens(row) for row in self.inputs["input_ids"].tolist()]
        is_user = torch.tensor(np.stack(user), device=self.device)
        ids = self.inputs["input_ids"].masked_fill(is_user, self.processor.cfg_token_id)
        own = [self.images[row] for row in self.rows]
        keys = {key for images in own for key in images}
        images = {key: torch.cat([images[key] for images in own if key in images]) for key in keys}
        return self.model(**{**self.inputs, "input_ids": ids}, **images, use_cache=True, logits_to_keep=1)[CACHE]

    def _keep(self, kept: list[int]):
        """Rows that are finished leave the batch."""
        self.rows = [self.rows[i] for i in kept]
        self.inputs = {key: value[kept] for key, value in self.inputs.items()}
        if kept:
            reached = self.cache.next_positions[kept]
            self.cache.batch_select_indices(torch.tensor(kept, device=self.device))
            self.cache.next_positions = reached


class AnswerStreamer(BaseStreamer):
    """Passes on the text of each row as it is written, as soon as its characters are whole."""

    def __init__(self, writer, stops: set[int], room: list[int]):
        self.writer, self.stops, self.room = writer, stops, room
        self.tokens: list[list[int]] = [[] for _ in room]
        self.told, self.has_ended, self.is_prompt = [0] * len(room), [False] * len(room), True

    def put(self, value: torch.Tensor):
        if self.is_prompt:
            self.is_prompt = False
            return
        for i, token in enumerate(value.tolist()):
            self.has_ended[i] |= token in self.stops or len(self.tokens[i]) >= self.room[i]
            if not self.has_ended[i]:
                self.tokens[i].append(token)
                self._tell(i, is_whole=False)

    def end(self):
        for i in range(len(self.room)):
            self._tell(i, is_whole=True)

    def _tell(self, i: int, is_whole: bool):
        text = self.writer.processor.tokenizer.decode(self.tokens[i])
        if len(text) > self.told[i] and (is_whole or not text.endswith("\N{REPLACEMENT CHARACTER}")):
            self.writer.on_item(self.writer.rows[i], {"type": "text", "text": text[self.told[i] :]})
            self.told[i] = len(text)


def _said(tokens: list[int], stops: set[int], pad: int, room: int) -> list[int]:
    """What is said of a row of new tokens, with what stops it; text for which there is no room is not."""
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    if end is not None:
        return tokens[: end + 1] if end <= room else tokens[:room]
    end = len(tokens)
    while end and tokens[end - 1] == pad:  # behind a stop string
        end -= 1
    return tokens[: min(end, room)]


def _images_of_rows(batch: dict, token_type_ids: torch.Tensor, config) -> list[dict[str, torch.Tensor]]:
    """The images of a batch, row by row."""
    images: list[dict] = [{} for _ in token_type_ids]
    for source, grids, others in SOURCES:
        if source not in batch:
            continue
        per_token = config.vision_config.spatial_merge_size**2 if source == "pixel_values" else 1
        token_type = config.token_type_index("pixel_values" if source == "pixel_values" else "noisy_latents")
        entries = (token_type_ids == token_type).sum(-1) * per_token
        row_of_image = torch.searchsorted(entries.cumsum(0), batch[grids].prod(-1).cumsum(0))
        for row, own in enumerate(batch[source].split(entries.tolist())):
            if len(own):
                of_row = {key: batch[key][row_of_image == row] for key in (grids, *others) if key in batch}
                images[row] |= {source: own, **of_row}
    return images


__all__ = ["answer", "stream_answer"]
