"""Text, images to understand and images to draw -> the batch of the model, and back."""

import math
import re
import reprlib

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy
from transformers.utils import get_json_schema, logging
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

from .arguments_rosetta import changes_nothing, read_arguments
from .buckets_rosetta import NUM_RATIOS, inference_buckets, nearest_bucket, training_buckets
from .conversation_rosetta import (
    AUTHORS_INFERENCE,
    AUTHORS_TRAINING,
    CHAT_TEMPLATE,
    CONTENT_TYPES,
    IN_ORDER,
    Turn,
    fill,
    find_turns,
    read_conversation,
)
from .drawing_rows_rosetta import drawing_rows
from .drawings_rosetta import (
    all_of,
    encode_drawings,
    fill_in,
    given_drawings,
    image_list,
    vae_image,
    with_latents_of_images,
)
from .images_rosetta import read_image
from .latent_roles_rosetta import CONTEXT, COPY, DRAFT, DRAWN, EMPTY
from .layout_rosetta import (
    JOINT,
    check_layout,
    check_slots,
    conversation_of,
    labels_in_order,
    slot_roles,
    without_images,
)
from .plain_text_rosetta import END, START, PlainText


logger = logging.get_logger(__name__)

PAD_VALUES = {"labels": -100}  # 0 for others but `input_ids`
# Template variables that callers set for any model.
COMMON_VARIABLES = ("enable_thinking", "reasoning_effort")


class RosettaProcessor(ProcessorMixin):
    r"""
    Tokenizer, image processor and token layout of Rosetta: by default the authors' training layout.

    In text, `<|image_pad|>` stands for one image to understand and `<|vision_pad|>` for one image to draw. In
    `input_ids` both become `<|image_pad|>`, one for each token of the image, told apart by `token_type_ids`.

    Args:
        image_processor: Qwen2-VL's image processor, for images to understand.
        tokenizer: a fast tokenizer that has the special tokens of [`~RosettaProcessor.special_tokens`].
        chat_template (`str`, *optional*): jinja template of a conversation; by default the authors' layout.
        embeds_from (`list[str]`): the batch key that each token type is embedded from, in the order of
            `config.token_types`. For a type of your own, e.g. one from `"audio_features"`, `<|audio_features|>` stands
            in text for one clip; it needs no token of its own, since the positions of the clip get `<|image_pad|>`.
        base_size (`int`, defaults to 256): side in pixels of the square image to draw.
        latent_patch_size (`int`, defaults to 16): pixels that a token of an image to draw covers, each way: the
            VAE's down-sampling times its 2 x 2 patches.
        latent_prefix (`bool`, defaults to `False`): whether an image to draw starts with its size, ratio and timestep
            tokens, as in the authors' inference but not in their training.
        latent_prefix_type (`int`, defaults to 0): the token type of these tokens: text, but in the authors' MoT a type
            that passes through the generation stream.
        layout (`str`, defaults to `"authors_training"`): where the images of a conversation stand.
            `"authors_training"`: those to understand before their turn; in training, what comes behind an image to
            draw sees it noisy. `"authors_inference"`: each in its turn, as clean latents and then ViT tokens, which
            attend causally. `"in_order"`: each where it was put, in an assistant's turn, too; what comes behind an
            image to draw sees it clean, and an assistant's turn learns to open it.
        image_embeds_from (`list[str]`, defaults to `["pixel_values"]`): what images to understand are given as: ViT
            tokens of `"pixel_values"`, clean latents, `"noisy_latents"` at timestep 0, or both, in this order.

    Raises:
        ValueError: if the tokenizer lacks a special token, or sizes or token types do not fit.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        embeds_from=("input_ids", "pixel_values", "noisy_latents"),
        base_size=256,
        latent_patch_size=16,
        latent_prefix=False,
        latent_prefix_type=0,
        layout=AUTHORS_TRAINING,
        image_embeds_from=("pixel_values",),
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        # Rows to generate from; transformers' pipelines ask the tokenizer. Training rows are padded by the collator.
        tokenizer.padding_side = "left"
        self.embeds_from = list(embeds_from)
        self.base_size = base_size
        self.latent_patch_size = latent_patch_size
        self.latent_prefix = latent_prefix
        self.latent_prefix_type = latent_prefix_type
        self.layout = layout
        self.image_embeds_from = list(image_embeds_from)
        self.training_buckets = training_buckets(base_size, latent_patch_size)
        self.inference_buckets = inference_buckets(base_size, latent_patch_size)

        self._plain_text_of: tuple = (None, None)
        self._headers = {role: self._encode_pieces([f"{role}\n"])[0][0] for role in CONTENT_TYPES}
        self._set_sources(self.embeds_from)

    def set_token_types(self, config):
        """
        Follows a model whose token types have changed.

        Args:
            config (`RosettaConfig`): of the model.

        Raises:
            ValueError: before anything is changed, if the tokenizer lacks a special token that the types need, or has
                more tokens than the vocabulary.
        """
        if len(self.tokenizer) > config.vocab_size:
            raise ValueError(
                f"The vocabulary of {config.vocab_size} is too small for the {len(self.tokenizer)} tokens of the "
                "processor's tokenizer."
            )
        self._set_sources([t["embeds_from"] for t in config.token_types])

    def _set_sources(self, embeds_from: list[str]):
        if embeds_from[:1] != ["input_ids"]:
            raise ValueError(f"`embeds_from`: the first token type is text, from 'input_ids'; got {embeds_from}.")
        if embeds_from[self.latent_prefix_type : self.latent_prefix_type + 1] != ["input_ids"]:
            raise ValueError(
                f"`latent_prefix_type` must be the index of a token type embedded from 'input_ids', of {embeds_from}, "
                f"got {self.latent_prefix_type}."
            )
        check_layout(self.layout, self.image_embeds_from, embeds_from, self.latent_prefix)
        needed = self.special_tokens(embeds_from, self.base_size, self.latent_prefix, self.layout)
        missing = [
            token
            for token in needed
            if self.tokenizer.convert_tokens_to_ids(token) in (None, self.tokenizer.unk_token_id)
        ]
        if missing:
            raise ValueError(
                f"`tokenizer` lacks the special tokens {missing}: add them with "
                "`tokenizer.add_tokens(tokens, special_tokens=True)`."
            )
        if self.tokenizer.pad_token_id is None:
            raise ValueError("`tokenizer` has no `pad_token`.")
        self.embeds_from = embeds_from
        ids = dict(zip(needed, self.tokenizer.convert_tokens_to_ids(needed), strict=True))
        self.turn_start_token_id = ids.pop("<|im_start|>")
        self.turn_end_token_id = ids.pop("<|im_end|>")
        self.cfg_token_id = ids.pop("<｜cfg｜>", None)
        self.image_token_id = ids["<|image_pad|>"]
        self.vision_start_token_id = ids["<|vision_start|>"]
        self.vision_end_token_id = ids["<|vision_end|>"]
        self.latents_token_id = ids.get("<|vision_pad|>")
        self.timestep_token_id = ids.get("<｜timestep｜>")
        self.joint_token_id = ids.get(JOINT)
        self._vision_token_ids = list(ids.values())

    @staticmethod
    def special_tokens(
        embeds_from: list[str] = ("input_ids", "pixel_values", "noisy_latents"),
        base_size: int = 256,
        latent_prefix: bool = False,
        layout: str = AUTHORS_TRAINING,
    ) -> list[str]:
        """The tokens that a processor with these attributes needs of its tokenizer."""
        tokens = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
        if "noisy_latents" in embeds_from:
            tokens += ["<|vision_pad|>", "<｜cfg｜>"]
        if latent_prefix:
            tokens += ["<｜timestep｜>", f"<｜img_size_{base_size}｜>"]
            tokens += [f"<｜img_ratio_{i}｜>" for i in range(NUM_RATIOS)]
        return [*tokens, JOINT] if layout == AUTHORS_INFERENCE else tokens

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        videos=None,
        audio=None,
        latents: list[torch.Tensor] | None = None,
        latent_sizes: list[tuple[int, int]] | None = None,
        return_labels: bool = False,
        sanitize_control_tokens: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: the images to understand in the order of their placeholders: PIL images, arrays, tensors, paths,
                URLs, base64 or bytes (see [`~images_rosetta.read_image`]), as a list or as one list for each text.
            text (`str` or `list[str]`): the B texts, each with one placeholder for each image. Special tokens in them
                are marks of the layout, whoever wrote them: for text of users there is
                [`~RosettaProcessor.apply_chat_template`].
            videos, audio: not taken; `None` is.
            latents (`list[torch.Tensor]`, *optional*): for images to draw in training, the patchified and normalised
                latent `(C, h, w)` of each.
            latent_sizes (`list[tuple[int, int]]`, *optional*): for images to draw in inference, (height, width) of
                each in pixels.
            return_labels (`bool`, defaults to `False`): for training: returns `labels` and closes every row with one
                more `<|im_end|>`. Targets are the responses and their `<|im_end|>`; in place of a response that is
                drawn, the whole user turn before it; in text without turns, everything. Tokens of an image, its
                marks and the first token of a row are never targets.
            sanitize_control_tokens (`bool`, defaults to `False`): as in transformers, for text that is already marked.
            kwargs: for each token type of your own, by what it embeds from, e.g. `audio_features=[...]`: the features
                `(l, C)` of each clip. Else the arguments of all processors: of text `padding` (on the left by
                default), `padding_side`, `truncation` (never of an image), `max_length`, `pad_to_multiple_of`,
                `return_tensors` (`"pt"` or `"np"`; lists by default) and so on, those of the image processor, and
                both as `text_kwargs`, `images_kwargs` and `common_kwargs`.

        Returns:
            [`BatchFeature`] with `input_ids`, `token_type_ids`, `attention_mask` and `labels` `(B, S)`; for images to
            understand `pixel_values` and `image_grid_thw`; for images to draw `latent_grid_hw` `(I, 2)` and, in
            training, `latents` `(L, C)`; the features of all clips, e.g. `audio_features` `(L, C)`.

        Raises:
            ValueError: if placeholders and images differ in number, an image cannot be read, a size is no multiple of
                `latent_patch_size`, rows differ in length without padding and cannot become tensors, an image would
                be truncated, or an argument cannot be honoured.
            TypeError: if there is no such argument.
        """
        given = {"images": images, "drawings": given_drawings(latents, latent_sizes) or []}
        arguments = {"videos": videos, "audio": audio, **kwargs}
        return self._encode(text, given, arguments, return_labels, sanitize_control_tokens)

    def _encode(
        self, text, given: dict, arguments: dict, return_labels=False, marked=False, spans: list[list] | None = None
    ) -> BatchFeature:
        """`spans`: where the assistant speaks, (start, end) in characters of each text, for `assistant_masks`."""
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) and t for t in texts):
            raise ValueError(
                f"`text` must be a string or a list of strings, none of them empty, got {reprlib.repr(text)}."
            )
        features = {key: arguments[key] for key in arguments if key.endswith("_features")}
        arguments = {key: value for key, value in arguments.items() if key not in features}
        text_arguments, image_arguments = read_arguments(self, arguments)
        tensors = text_arguments.get("return_tensors")

        rows, places = self._tokenize(texts, marked, with_places=spans is not None)
        vision = self._encode_images(rows, given["images"], tensors, image_arguments)
        merge_area = self.image_processor.merge_size**2
        image_tokens = iter([int(math.prod(grid)) // merge_area for grid in vision.get("image_grid_thw", [])])
        drawing, slots = self._encode_latents(rows, given["drawings"], return_labels)
        slots = iter(slots)
        clips, clip_lengths = self._encode_features(rows, features, tensors)

        batch = {"input_ids": [], "token_type_ids": [], "attention_mask": []}
        for i, row in enumerate(rows):
            input_ids, token_type_ids, counts, openings = self._expand(row, image_tokens, slots, clip_lengths)
            is_closed = return_labels and not (self.layout == IN_ORDER and self.turn_start_token_id in row)
            if is_closed:
                input_ids.append(self.turn_end_token_id)
                token_type_ids.append(0)
            if return_labels:
                batch.setdefault("labels", []).append(self._labels(input_ids, token_type_ids, openings))
            if spans is not None:
                spoken = [any(s < end and e > start for start, end in spans[i]) for s, e in places[i]]
                mask = [*np.repeat(spoken, counts), *[False] * is_closed]
                mask = [int(speaks and t == 0) for speaks, t in zip(mask, token_type_ids, strict=True)]
                batch.setdefault("assistant_masks", []).append(mask)
            if text_arguments.get("return_mm_token_type_ids"):
                batch.setdefault("mm_token_type_ids", []).append(
                    [int(self.embeds_from[t] == "pixel_values") for t in token_type_ids]
                )
            batch["input_ids"].append(input_ids)
            batch["token_type_ids"].append(token_type_ids)
            batch["attention_mask"].append([1] * len(input_ids))
        batch = self._fit(batch, text_arguments)
        return BatchFeature({**batch, **vision, **drawing, **clips}, tensor_type=tensors)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        tools: list[dict] | None = None,
        documents: list[dict] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs,
    ):
        """
        A conversation, or a list of them, as text, or with `tokenize` as the batch of [`~RosettaProcessor.__call__`]
        (its `input_ids` only, unless `return_dict`).

        A message is `{"role": "system" | "user" | "assistant", "content": str or list}` with items
        `{"type": "text", "text": str}`; in a user's turn `{"type": "image", "image": image, path or URL}`, to
        understand; in an assistant's turn an image to draw, `{"type": "latents", "latents": Tensor (C, h, w)}` in
        training or `{"type": "latents", "height": int, "width": int}` in inference; in either's, features of a token
        type of your own, e.g. `{"type": "audio_features", "audio_features": Tensor (l, C)}`. What is not text may be
        left out of the items and be given to the call (`images`, `latents`, `latent_sizes`) with its other arguments,
        as `processor_kwargs` or directly, also in part. An image may be at `"url"`, `"path"` or `"base64"` too, or be
        OpenAI's `image_url`. A template of your own that names the roles `"tool"` or `"developer"` gets their text.

        Special tokens in the messages, and in all else that the template reads, are text: they are tokenised as text.

        Args:
            chat_template (`str`, *optional*): a jinja template, or the name of one of the processor's.
            tools, documents (`list`, *optional*): for a template that reads them; by default there is none that does.
            add_generation_prompt, continue_final_message, tokenize, return_dict: as in transformers; with one of the
                first two, rows are padded on the left whatever the tokenizer says.
            return_assistant_tokens_mask (`bool`, defaults to `False`): returns `assistant_masks` `(B, S)`, 1 at the
                assistant's text, for templates with `{% generation %}`.
            processor_kwargs (`dict`, *optional*): arguments of [`~RosettaProcessor.__call__`].
            sanitize_control_tokens (`bool`): as in transformers, but always done.
            kwargs: variables of the template; else as `processor_kwargs`.

        Raises:
            ValueError: if a role or an item is unknown or stands in a wrong turn, if without `tokenize` a text holds a
                special token, if an argument cannot be honoured, and as `__call__`.
            TypeError: if there is no such argument.
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError("`add_generation_prompt` and `continue_final_message` cannot be given together.")
        if return_assistant_tokens_mask and continue_final_message:
            raise ValueError("`return_assistant_tokens_mask` and `continue_final_message` cannot be given together.")
        template = self._template(chat_template)
        if self.layout != AUTHORS_TRAINING and "in_place" not in template:
            raise ValueError(f"`chat_template` must put images `in_place` for the layout {self.layout!r}.")
        variables, arguments = self._split_variables(template, {"tools": tools, "documents": documents, **kwargs})
        arguments = {**(processor_kwargs or {}), **arguments}
        own = ("images", "latents", "latent_sizes", "return_labels", "sanitize_control_tokens", *self._feature_keys)
        given = {key: arguments.pop(key, None) for key in own}

        plain_text = self._plain_text()
        batched = isinstance(conversation, (list, tuple)) and any(isinstance(m, (list, tuple)) for m in conversation)
        contents = [
            read_conversation(
                messages,
                self._feature_keys,
                template,
                plain_text,
                tokenize,
                self.layout,
                self.image_embeds_from,
            )
            for messages in (conversation if batched else [conversation])
        ]
        variables = {key: plain_text.mark_all(value, f"`{key}`", tokenize) for key, value in variables.items()}
        text, spans = render_jinja_template(  # type: ignore[str-unpack]
            conversations=[content["messages"] for content in contents],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            **{**self.tokenizer.special_tokens_map, **variables},
        )
        if not tokenize:
            read_arguments(self, arguments)
            return text if batched else text[0]
        generates = add_generation_prompt or continue_final_message
        if generates and "padding_side" not in {**arguments, **(arguments.get("text_kwargs") or {})}:
            arguments["padding_side"] = "left"
        drawings = given_drawings(given["latents"], given["latent_sizes"])
        batch = self._encode(
            text,
            fill_in(contents, {**given, "drawings": drawings}, "pixel_values" in self.image_embeds_from),
            {**arguments, **{key: fill(all_of(contents, key), given[key], key) for key in self._feature_keys}},
            bool(given["return_labels"]),
            marked=True,
            spans=spans if return_assistant_tokens_mask else None,
        )
        return batch if return_dict else batch["input_ids"]

    def training_sample(self, conversation: list[dict] | str) -> dict[str, torch.Tensor]:
        """
        One sample for the data collator: a conversation, or a document as plain text, with labels and without a batch
        dimension. A message with `"weight": 0` is no target, as in OpenAI's format of chats for fine-tuning.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `token_type_ids` and `labels` `(S,)`, and what
            [`~RosettaProcessor.__call__`] returns for images.
        """
        arguments = {"return_labels": True, "return_tensors": "pt", "padding": False, "truncation": False}
        if isinstance(conversation, str):
            (text,) = self._plain_text().mark([conversation], "`conversation`")
            batch = self(text=text, sanitize_control_tokens=True, **arguments)
        else:
            batch = self.apply_chat_template(conversation, tokenize=True, return_dict=True, **arguments)
            turns = self._turns(batch["input_ids"][0].tolist())
            for turn, message in zip(reversed(turns), reversed(conversation), strict=False):
                if message.get("weight") == 0:
                    batch["labels"][0, turn.start : turn.end] = -100
        rows = ("input_ids", "token_type_ids", "labels")
        images = [key for key in self.model_input_names if key not in (*rows, "attention_mask")]
        return {**{key: batch[key][0] for key in rows}, **{key: batch[key] for key in images if key in batch}}

    def drop_prompt(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        The unconditional twin of a sample, for classifier-free guidance: every token of the user's text becomes
        `<｜cfg｜>`, the length stays, and the user's turns are no longer targets.
        """
        input_ids = torch.as_tensor(sample["input_ids"]).clone()
        input_ids[torch.from_numpy(self._user_tokens(input_ids.tolist()))] = self.cfg_token_id
        dropped = {**sample, "input_ids": input_ids}
        if "labels" in sample:
            dropped["labels"] = torch.as_tensor(sample["labels"]).clone()
            for turn in self._turns(input_ids.tolist()):
                if turn.role == "user":
                    dropped["labels"][turn.start : turn.end] = -100
        return dropped

    def drop_images(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The twin of a sample for guidance by an image: see [`~layout_rosetta.without_images`]."""
        return without_images(sample, self)

    def conversation_of(self, sample: dict[str, torch.Tensor]) -> list[dict]:
        """The messages that a sample was made of: see [`~layout_rosetta.conversation_of`]."""
        return conversation_of(sample, self)

    def with_latents_of_images(self, conversation: list[dict], encode) -> list[dict]:
        """See [`~drawings_rosetta.with_latents_of_images`]."""
        return with_latents_of_images(conversation, self, encode)

    def draw_prompt(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        system_prompt: str | None = None,
        images: list[list] | None = None,
        guides_by_images: bool = False,
    ) -> BatchFeature:
        """
        The rows that the pipeline draws from: B conditional ones and, with guidance, B unconditional ones after them,
        which still have the images; with `guides_by_images`, then B without these, too.
        Padding is on the left, so that the images of all rows stand at the same columns, at the end.

        Args:
            prompt (`str` or `list[str]`): the B prompts.
            height, width (`int`, *optional*): of all images in pixels, by default `base_size`.
            negative_prompt (`str` or `list[str]`, *optional*): one, or one for each prompt, for the unconditional
                rows; by default `<｜cfg｜>` in place of each token of the prompt.
            do_classifier_free_guidance (`bool`, defaults to `True`): whether to return unconditional rows.
            system_prompt (`str`, *optional*): the system's turn that all rows start with.
            images (`list[list]`, *optional*): those to draw from, of each prompt, as
                [`~images_rosetta.read_image`] takes them. They stand in the user's turn, before the prompt.
            guides_by_images (`bool`, defaults to `False`)

        Returns:
            [`BatchFeature`] of tensors `input_ids`, `token_type_ids`, `attention_mask` `(2B, S)` and `latent_grid_hw`
            `(2B, 2)`; with images what `__call__` returns of them.

        Raises:
            ValueError: if a prompt is no string, prompts differ in number, an image cannot be read, or a size is no
                multiple of `latent_patch_size`.
        """
        arguments = (prompt, height, width, negative_prompt, do_classifier_free_guidance, system_prompt)
        return drawing_rows(self, *arguments, images, guides_by_images)

    def preprocess_vae_image(self, image) -> torch.Tensor:
        """
        An image to draw, for the VAE: read as [`~images_rosetta.read_image`] does and resized to its training bucket
        without cropping, as the authors do.

        Returns:
            `torch.FloatTensor` of shape `(3, height, width)` in [-1, 1].

        Raises:
            ValueError: if `image` cannot be read.
        """
        image = read_image(image, "`image`")
        return vae_image(image, self).float() / 255 * 2 - 1

    @property
    def image_token(self) -> str:
        return "<|image_pad|>"

    @property
    def model_input_names(self) -> list[str]:
        images = ["pixel_values", "image_grid_thw", "image_is_causal"]
        images += ["latents", "latent_pixels", "latent_grid_hw", "latent_roles"]
        return ["input_ids", "token_type_ids", "attention_mask", *images, *self._feature_keys]

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """Tokens and patches of images to understand of these sizes, (height, width) in pixels, for servers."""
        if image_sizes is None:
            return MultiModalData()
        patches = [self.image_processor.get_number_of_image_patches(*size, kwargs) for size in image_sizes]
        tokens = [count // self.image_processor.merge_size**2 for count in patches]
        return MultiModalData(num_image_tokens=tokens, num_image_patches=patches)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What the placeholder of an image to understand becomes, for servers that expand the text themselves."""
        patches = int(math.prod(image_inputs["image_grid_thw"][image_idx]))
        return self.image_token * (patches // self.image_processor.merge_size**2)

    def _template(self, name_or_template: str | None) -> str:
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        name_or_template = name_or_template or "default"
        if name_or_template == "default" and "default" not in templates:
            raise ValueError(f"`chat_template` must be one of {list(templates)}, as none of them is 'default'.")
        return templates.get(name_or_template, name_or_template)

    @staticmethod
    def _split_variables(template: str, arguments: dict) -> tuple[dict, dict]:
        """The variables that the template reads, and the arguments of the call."""
        variables, rest = {}, {}
        for name, value in arguments.items():
            if name in _get_template_variables(template):
                variables[name] = value
            elif name in ("tools", "documents"):
                if not changes_nothing(value):
                    raise ValueError(f"`{name}` cannot be honoured: the chat template does not read them.")
            elif name in COMMON_VARIABLES:
                if not changes_nothing(value):
                    logger.warning_once(f"The chat template does not read `{name}`, which changes nothing.")
            else:
                rest[name] = value
        if variables.get("tools"):  # functions hold text, too
            variables["tools"] = [get_json_schema(t) if callable(t) else t for t in variables["tools"]]
        return variables, rest

    def _plain_text(self) -> PlainText:
        # Made anew when something that it depends on has changed, and not for each text: the authors' tokenizer has
        # thousands of special tokens.
        tokenizer = self.tokenizer
        state = (id(tokenizer), len(tokenizer), str(tokenizer.special_tokens_map), *self.embeds_from)
        state = (*state, self.base_size, self.latent_prefix, self.layout)
        if self._plain_text_of[0] != state:
            marks = self.special_tokens(self.embeds_from, self.base_size, self.latent_prefix, self.layout)
            plain_text = PlainText(tokenizer, marks, [f"<|{key}|>" for key in self._feature_keys])
            self._plain_text_of = (state, plain_text)
        return self._plain_text_of[1]

    def _encode_pieces(self, pieces: list[str], with_places: bool = False, **kwargs) -> list[tuple[list, list]]:
        """Token ids of each piece, and (start, end) of each token in it or nothing."""
        if not pieces:  # a batch of nothing but clips, which a fast tokenizer fails on
            return []
        arguments = {"add_special_tokens": False, "return_attention_mask": False, **kwargs}
        encoded = self.tokenizer(pieces, return_offsets_mapping=with_places, **arguments)
        places = encoded["offset_mapping"] if with_places else [[]] * len(pieces)
        return list(zip(encoded["input_ids"], places, strict=True))

    def _tokenize(self, texts: list[str], marked: bool, with_places: bool) -> tuple[list[list[int]], list[list]]:
        """
        Token ids of each text and, with places, (start, end) of each token in it.

        `marked`: whether [`PlainText`] marked what is text though it looks like a control token.
        """
        # Turn headers are tokenised apart, so that no content can merge with them: a prompt's tokens are the first
        # ones of its training sample, and the user's tokens can be told from the header's.
        # So are placeholders of clips, which become minus the index of their token type.
        clips = {f"<|{key}|>": [-self.embeds_from.index(key)] for key in self._feature_keys}
        header = rf"<\|im_start\|>(?:{'|'.join(CONTENT_TYPES)})\n"
        patterns = [*([self._plain_text().marked] if marked else []), header, *map(re.escape, clips)]
        apart = re.compile(f"({'|'.join(patterns)})")
        pieces = [[piece for piece in apart.split(text) if piece] for text in texts]
        flat = [piece for row in pieces for piece in row]
        texts = [piece for piece in flat if marked and piece[0] in (START, END)]
        kept_apart = {*texts, *clips}
        others = iter(self._encode_pieces([p for p in flat if p not in kept_apart], with_places))
        # A lone mark, that a template cut off, has no text: it only keeps its sides apart.
        inner = [text[1:-1] for text in texts if len(text) > 1]
        written = iter(self._encode_pieces(inner, with_places, split_special_tokens=True))
        rows, places = [], []
        for row in pieces:
            ids, spans, start = [], [], 0
            for piece in row:
                if piece in clips:
                    new, offsets = clips[piece], [(0, len(piece))]
                elif piece in kept_apart:
                    new, offsets = next(written) if len(piece) > 1 else ([], [])
                else:
                    new, offsets = next(others)
                ids += new
                spans += [(start + begin, start + end) for begin, end in offsets]
                start += len(piece)
            rows.append(ids)
            places.append(spans)
        return rows, places

    @property
    def _feature_keys(self) -> list[str]:
        return [source for source in self.embeds_from if source.endswith("_features")]

    def _encode_features(
        self, rows: list[list[int]], features: dict[str, list], return_tensors: str | None
    ) -> tuple[dict, dict]:
        """All clips of each token type of the user's own, and by its index an iterator over their lengths."""
        given = {key for key, clips in features.items() if clips is not None}
        if unknown := sorted(given - set(self._feature_keys)):
            raise ValueError(f"`{unknown[0]}`: no token type is embedded from it, only from {self.embeds_from}.")
        batch, lengths = {}, {}
        for key in self._feature_keys:
            index, clips = self.embeds_from.index(key), _listed(key, features.get(key))
            expected = sum(row.count(-index) for row in rows)
            if len(clips) != expected:
                raise ValueError(
                    f"`{key}`: `text` has {expected} placeholders <|{key}|> (one for each clip), but {len(clips)} "
                    "clips were given."
                )
            try:
                clips = [torch.as_tensor(clip) for clip in clips]
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"`{key}` must be clips of numbers (l, C): {error}") from error
            for i, clip in enumerate(clips):
                if clip.ndim != 2 or len(clip) == 0:
                    raise ValueError(f"`{key}`: clip {i} must have shape (l, C), got {tuple(clip.shape)}.")
            _check_channels(key, [clip.shape[1] for clip in clips])
            lengths[index] = iter([len(clip) for clip in clips])
            if clips:
                joined = torch.cat(clips)
                batch[key] = joined if return_tensors is not None else joined.tolist()
        return batch, lengths

    def _encode_images(self, rows: list[list[int]], images, return_tensors: str | None, arguments: dict) -> dict:
        expected = [row.count(self.image_token_id) for row in rows]
        images, given = image_list(images)
        if given is None:
            given, expected = len(images), sum(expected)
        if given != expected:
            raise ValueError(
                f"`images`: `text` has {reprlib.repr(expected)} placeholders <|image_pad|> (one for each image to "
                f"understand), but {reprlib.repr(given)} images were given."
            )
        arguments = {**arguments, "return_tensors": return_tensors}
        layout = arguments.pop("input_data_format", None)
        if arguments.get("do_rescale") is False and any("float" in str(getattr(i, "dtype", "")) for i in images):
            raise ValueError("`do_rescale` cannot be False with arrays of floats: they are read as 8 bits a channel.")
        images = [read_image(image, f"`images`: image {i}", layout) for i, image in enumerate(images)]
        if not images:
            return {}
        if "pixel_values" not in self.embeds_from:
            raise ValueError(f"`images`: no token type is embedded from 'pixel_values', only from {self.embeds_from}.")
        try:
            batch = dict(self.image_processor(images, **arguments))
        except ValueError as error:
            raise ValueError(f"`images`: {error}") from error
        if self.layout == AUTHORS_INFERENCE:
            batch["image_is_causal"] = [1] * len(images)
        return batch

    def _encode_latents(self, rows: list[list[int]], drawings: list, training: bool) -> tuple[dict, list]:
        """What the batch holds of images among the latents, and (height, width, role) of each."""
        expected = sum(row.count(self.latents_token_id) for row in rows)
        if drawings and self.latents_token_id is None:
            raise ValueError(
                f"`latents`: no token type is embedded from 'noisy_latents', only from {self.embeds_from}."
            )
        if len(drawings) != expected:
            raise ValueError(
                f"`latents`: `text` has {expected} placeholders <|vision_pad|> (one for each image to draw), but "
                f"{len(drawings)} latents or sizes were given."
            )
        if self.layout != AUTHORS_TRAINING:
            for row in rows:
                marks = (self.vision_start_token_id, self.vision_end_token_id, self.joint_token_id)
                check_slots(row, {self.image_token_id, self.latents_token_id}, *marks)
        if not expected:
            return {}, []
        batch, grids = encode_drawings(drawings, self)
        if training and batch and any(drawing.size is not None for drawing in drawings):
            raise ValueError("`latent_sizes`: to train on them, images among others that have latents need them, too.")
        if training:
            is_context, ends = (d.is_context for d in drawings), {self.vision_end_token_id, self.turn_end_token_id}
            in_order = self.layout == IN_ORDER
            roles = [
                role
                for row in rows
                for role in slot_roles(
                    row, self.latents_token_id, ends, self._turns(row) if in_order else [], is_context, in_order
                )
            ]
            shown = {*roles} - {DRAWN}
        else:
            roles = [EMPTY if drawing.size is not None else CONTEXT for drawing in drawings]
            shown = {*roles} == {EMPTY, CONTEXT}
        slots = [(*grid, role) for grid, role in zip(grids, roles, strict=True)]
        pairs = [[slot] if slot[2] != DRAFT else [slot, (*slot[:2], COPY)] for slot in slots]
        batch["latent_grid_hw"] = [[height, width] for pair in pairs for height, width, _ in pair]
        if shown:
            batch["latent_roles"] = [role for pair in pairs for *_, role in pair]
        return batch, slots

    def _expand(self, row: list[int], image_tokens, slots, clip_lengths) -> tuple[list[int], ...]:
        """
        Placeholders become one token for each token of their image. Returns `input_ids`, `token_type_ids`, how many
        each of `row` became, and where images to draw open.
        """
        input_ids, token_type_ids, counts, openings = [], [], [], []
        for token in row:
            length = len(input_ids)
            if token == self.latents_token_id:
                height, width, role = next(slots)
                prefix, latent_type = self._prefix(height, width), self.embeds_from.index("noisy_latents")
                openings += [length - 1] if role in (DRAWN, DRAFT) and length else []
                for marks in (prefix, prefix[-1:]) if role == DRAFT else (prefix,):  # the copy has a time of its own
                    input_ids += marks + [self.image_token_id] * height * width
                    token_type_ids += [self.latent_prefix_type] * len(marks) + [latent_type] * height * width
                counts.append(len(input_ids) - length)
                continue
            count, token_type = 1, 0
            if token < 0:
                token, count, token_type = self.image_token_id, next(clip_lengths[-token]), -token
            elif token == self.image_token_id:
                count, token_type = next(image_tokens), self.embeds_from.index("pixel_values")
            input_ids += [token] * count
            token_type_ids += [token_type] * count
            counts.append(count)
        return input_ids, token_type_ids, counts, openings

    def _prefix(self, height: int, width: int) -> list[int]:
        if not self.latent_prefix:
            return []
        ratio = nearest_bucket(height, width, self.inference_buckets)
        tokens = [f"<｜img_size_{self.base_size}｜>", f"<｜img_ratio_{ratio}｜>", "<｜timestep｜>"]
        return self.tokenizer.convert_tokens_to_ids(tokens)

    def _turns(self, row: list[int]) -> list[Turn]:
        return find_turns(row, self.turn_start_token_id, self.turn_end_token_id, self._headers)

    def _user_tokens(self, row: list[int]) -> np.ndarray:
        mask = np.zeros(len(row), dtype=bool)
        for turn in self._turns(row):
            if turn.role == "user":
                mask[turn.content : turn.close] = True
        return mask & ~np.isin(row, self._vision_token_ids)

    def _labels(self, row: list[int], token_type_ids: list[int], openings: list[int]) -> list[int]:
        turns = self._turns(row)
        if self.layout == IN_ORDER:
            return labels_in_order(row, token_type_ids, turns, self._vision_token_ids, openings)
        targets = np.full(len(row), not turns)
        for previous, turn in zip([None, *turns], turns, strict=False):
            if turn.role != "assistant":
                continue
            if not any(token_type_ids[turn.content : turn.close]):
                targets[turn.content : turn.close + 1] = True
            elif previous is not None and previous.role == "user":
                targets[previous.start : previous.end] = True
        targets &= (np.array(token_type_ids) == 0) & ~np.isin(row, self._vision_token_ids)
        # The authors' packed rows predict a sample's first token from the last one of the sample before. Here a row of
        # several samples must equal the samples one by one.
        targets[0] = False
        return np.where(targets, row, -100).tolist()

    def _fit(self, batch: dict[str, list[list[int]]], arguments: dict) -> dict[str, list[list[int]]]:
        """Rows truncated and padded as the arguments say."""
        multiple = arguments.get("pad_to_multiple_of")
        padding, truncation, max_length, _ = self.tokenizer._get_padding_truncation_strategies(
            padding=arguments.get("padding") or False,
            truncation=arguments.get("truncation"),
            max_length=arguments.get("max_length"),
            pad_to_multiple_of=multiple,
        )
        if truncation != TruncationStrategy.DO_NOT_TRUNCATE:
            batch = self._truncate(batch, max_length)
        if padding != PaddingStrategy.DO_NOT_PAD:
            length = max_length if padding == PaddingStrategy.MAX_LENGTH else max(map(len, batch["input_ids"]))
            length = math.ceil(length / (multiple or 1)) * (multiple or 1)
            batch = self._pad(batch, arguments.get("padding_side") or self.tokenizer.padding_side, length)
        lengths = {len(row) for row in batch["input_ids"]}
        if arguments.get("return_tensors") is not None and len(lengths) > 1:
            raise ValueError(
                "`padding` must be True, or `max_length` enough for all, to make tensors of rows of "
                f"{min(lengths)} to {max(lengths)} tokens."
            )
        if arguments.get("return_token_type_ids") is False:
            if any(map(any, batch.pop("token_type_ids"))):
                raise ValueError("`return_token_type_ids` cannot be False where there are images or clips.")
        if arguments.get("return_attention_mask") is False:
            batch.pop("attention_mask")
        return batch

    def _truncate(self, batch: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
        kept = slice(-length, None) if self.tokenizer.truncation_side == "left" else slice(length)
        for i, types in enumerate(batch["token_type_ids"]):
            if sum(map(bool, types)) != sum(map(bool, types[kept])):
                raise ValueError(
                    f"`truncation` to {length} of the {len(types)} tokens of row {i} would cut an image or a clip."
                )
        return {key: [row[kept] for row in rows] for key, rows in batch.items()}

    def _pad(
        self, batch: dict[str, list[list[int]]], padding_side: str, length: int | None = None
    ) -> dict[str, list[list[int]]]:
        length = length or max(map(len, batch["input_ids"]))
        padded = {}
        for key, rows in batch.items():
            value = self.tokenizer.pad_token_id if key == "input_ids" else PAD_VALUES.get(key, 0)
            padding = [[value] * (length - len(row)) for row in rows]
            padded[key] = [
                pad + row if padding_side == "left" else row + pad for pad, row in zip(padding, rows, strict=True)
            ]
        return padded


def _listed(name: str, given) -> list:
    if not (given is None or isinstance(given, (list, tuple, np.ndarray, torch.Tensor))):
        raise ValueError(f"`{name}` must be a list, got {reprlib.repr(given)}.")
    return [] if given is None else list(given)


def _check_channels(name: str, channels: list[int]):
    if len(set(channels)) > 1:
        raise ValueError(f"`{name}` must all have the same number of channels, got {reprlib.repr(channels)}.")


RosettaProcessor.register_for_auto_class()

__all__ = ["RosettaProcessor"]
