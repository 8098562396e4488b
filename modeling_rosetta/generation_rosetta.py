"""What `generate` has to know of positions, images and features."""

from functools import wraps

import torch
import torch.nn.functional as F
from transformers.generation import GenerationMixin

from .cache_names_rosetta import CACHE, cache_of
from .continuation_rosetta import cached_length, positions_after, sources, without_cached


class RosettaGenerationMixin(GenerationMixin):
    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """M-RoPE positions (3, B, S) of the prompt, 0 for what is cached; `generate` extends them by one a token."""
        cache, attention_mask = cache_of(model_kwargs), model_kwargs["attention_mask"]
        past_length, length = cached_length(cache), inputs_tensor.shape[1]
        token_type_ids = model_kwargs.get("token_type_ids")
        if token_type_ids is None:
            token_type_ids = torch.zeros(inputs_tensor.shape[:2], dtype=torch.long, device=inputs_tensor.device)
        num_new = length - past_length if attention_mask.shape[1] == length else length
        if num_new < 1:
            raise ValueError(
                f"`input_ids` has {length} tokens and `past_key_values` {past_length}: give all tokens of the "
                "conversation or, with the new ones alone, an `attention_mask` of all."
            )
        num_cached = token_type_ids.shape[1] - num_new
        media = {**model_kwargs, **without_cached(self.config, token_type_ids, model_kwargs, num_cached)}
        grids = self.model.image_grids(media.get("image_grid_thw"), media.get("latent_grid_hw"))
        positions = positions_after(cache, token_type_ids[:, num_cached:], grids, attention_mask)
        return F.pad(positions, (past_length, 0))

    def _validate_model_kwargs(self, model_kwargs):
        own = {CACHE, *(key for source in sources(self.config) for key in source.of_tokens)}
        super()._validate_model_kwargs({key: value for key, value in model_kwargs.items() if key not in own})

    @staticmethod
    def create_masks_for_generate(attention_mask, **kwargs):
        """The model makes its masks itself, also for static caches, since it knows the images."""
        return attention_mask

    def prepare_inputs_for_generation(
        self,
        input_ids,
        inputs_embeds=None,
        is_first_iteration=False,
        token_type_ids=None,
        tokenizer=None,
        assistant_tokenizer=None,
        **kwargs,
    ):
        """The tokenizers, which `generate` takes for stop strings and hands on, are none of the model's inputs."""
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        cached = {}
        if not is_first_iteration and kwargs.get("use_cache", True):
            # Images and features are in the cache after the prompt, and new tokens are text, which is faster to say
            # than to find out.
            cached = {key: None for source in sources(self.config) for key in (*source.of_tokens, *source.of_images)}
            cached["token_type_ids"] = None
        elif token_type_ids is not None:
            num_cached = token_type_ids.shape[1] - model_inputs["token_type_ids"].shape[1]
            cached = without_cached(self.config, token_type_ids, model_inputs, num_cached)
        return {**model_inputs, **cached}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        """What is generated is text, also after an image."""
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=is_encoder_decoder, num_new_tokens=num_new_tokens
        )
        if (token_type_ids := model_kwargs.get("token_type_ids")) is not None:
            model_kwargs["token_type_ids"] = F.pad(token_type_ids[:, :-num_new_tokens], (0, num_new_tokens))
        return model_kwargs

    @wraps(GenerationMixin._assisted_decoding)
    def _assisted_decoding(self, *args, token_type_ids=None, **kwargs):
        """What an assistant proposes gets the type of the last column: one more than the tokens, which is text."""
        if token_type_ids is not None:
            kwargs["token_type_ids"] = F.pad(token_type_ids, (0, 1))
        if cached_length(cache_of(kwargs)) > 0 and kwargs.get("attention_mask") is None:
            # `generate` has left out a mask of ones, which says that the tokens are the whole conversation.
            kwargs["attention_mask"] = torch.ones_like(kwargs["position_ids"][0])
        return super()._assisted_decoding(*args, **kwargs)

    @wraps(GenerationMixin.generate_batch)
    def generate_batch(self, inputs: list[list[int]], *args, **kwargs):
        """Of text alone: transformers' scheduler takes token ids, and its paged cache only a causal mask."""
        marks = {self.config.image_token_id, self.config.timestep_token_id} - {None}
        for row, ids in enumerate(inputs):
            if found := marks.intersection(ids):
                raise ValueError(
                    f"`inputs` of `generate_batch` may hold text alone, but row {row} has the image token "
                    f"{found.pop()}: conversations about images are for `generate`, which takes them in batches, too."
                )
        return super().generate_batch(inputs, *args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ):
        """For beams and several answers: repeats each prompt, with the images and features that are its own, and what
        is cached of it."""
        if expand_size > 1:
            types, positions = model_kwargs.get("token_type_ids"), model_kwargs.get("position_ids")
            cache, repeated = cache_of(model_kwargs), {}
            if types is not None:
                num_cached = 0
                if cached_length(cache) > 0 and positions is not None:
                    num_cached = types.shape[1] - (positions.shape[-1] - cached_length(cache))
                    model_kwargs |= without_cached(self.config, types, model_kwargs, num_cached)
                repeated = self._repeat_images_and_features(types[:, num_cached:], expand_size, model_kwargs)
            if cached_length(cache) > 0 and len(cache.layers[0].keys) == len(input_ids):
                cache.batch_repeat_interleave(expand_size)
            if positions is not None:
                repeated["position_ids"] = positions.repeat_interleave(expand_size, dim=positions.ndim - 2)
            rows = {key: value for key, value in model_kwargs.items() if key not in repeated}
            input_ids, model_kwargs = super()._expand_inputs_for_generation(
                expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **rows
            )
            model_kwargs.update(repeated)
        return input_ids, model_kwargs

    def _repeat_images_and_features(self, token_type_ids, times: int, inputs: dict) -> dict[str, torch.Tensor]:
        """Those of one prompt (a row of `token_type_ids`) stand together, in the order of the prompts."""
        entries: dict[str, torch.Tensor] = {}  # of each key, how many belong to each prompt
        for source in sources(self.config):
            tokens = (token_type_ids == source.token_type).sum(-1)
            if source.of_images:
                if inputs.get(source.of_images[0]) is None:
                    continue
                tokens_of_image = inputs[source.of_images[0]].prod(-1) // source.entries_per_token
                prompt_of_image = torch.searchsorted(tokens.cumsum(0), tokens_of_image.cumsum(0))
                entries |= dict.fromkeys(source.of_images, torch.bincount(prompt_of_image, minlength=len(tokens)))
            entries |= dict.fromkeys(source.of_tokens, tokens * source.entries_per_token)
        given = {key: inputs[key] for key in entries if inputs.get(key) is not None}
        for key, value in given.items():
            if len(value) != entries[key].sum():
                raise ValueError(f"`{key}` has {len(value)} entries, but the prompts need {int(entries[key].sum())}.")
        return {
            key: torch.cat([own for own in value.split(entries[key].tolist()) for _ in range(times)])
            for key, value in given.items()
        }


__all__ = ["RosettaGenerationMixin"]
