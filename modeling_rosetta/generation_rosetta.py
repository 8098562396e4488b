"""What `generate` has to know of positions, images and features."""

import torch
from transformers.generation import GenerationMixin

from .positions_rosetta import get_rope_index


class RosettaGenerationMixin(GenerationMixin):
    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """M-RoPE positions (3, B, S) of the prompt; `generate` extends them by one a token."""
        cache = model_kwargs.get("past_key_values")
        token_type_ids = model_kwargs.get("token_type_ids")
        if token_type_ids is None or (cache is not None and cache.get_seq_length() > 0):
            positions = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
            return positions.expand(3, *positions.shape)
        grids = self.model.image_grids(model_kwargs.get("image_grid_thw"), model_kwargs.get("latent_grid_hw"))
        return get_rope_index(token_type_ids, grids, model_kwargs.get("attention_mask"))

    def _validate_model_kwargs(self, model_kwargs):
        own = [key for t in self.config.feature_types.values() for key in self.config.feature_keys(t)]
        super()._validate_model_kwargs({key: value for key, value in model_kwargs.items() if key not in own})

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            # Images and features are in the cache after the prompt.
            features = [key for t in self.config.feature_types.values() for key in self.config.feature_keys(t)]
            for key in ("pixel_values", "image_grid_thw", "noisy_latents", "latent_grid_hw", "timesteps", *features):
                model_inputs.pop(key, None)
        return model_inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ):
        """For beams and several answers: repeats each prompt, with the images and features that are its own."""
        if expand_size > 1:
            types = model_kwargs.get("token_type_ids")
            repeated = {} if types is None else self._repeat_images_and_features(types, expand_size, model_kwargs)
            positions = model_kwargs.get("position_ids")
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
        entries = {}  # of each key, how many belong to each prompt
        for index, token_type in self.config.feature_types.items():
            entries |= dict.fromkeys(self.config.feature_keys(token_type), (token_type_ids == index).sum(-1))
        for source, grid_key, *others in (
            ("pixel_values", "image_grid_thw"),
            ("noisy_latents", "latent_grid_hw", "timesteps"),
        ):
            if inputs.get(grid_key) is None:
                continue
            merged = self.config.vision_config.spatial_merge_size**2 if source == "pixel_values" else 1
            tokens = (token_type_ids == self.config.token_type_index(source)).sum(-1)
            tokens_of_image = inputs[grid_key].prod(-1) // merged
            prompt_of_image = torch.searchsorted(tokens.cumsum(0), tokens_of_image.cumsum(0))
            images = torch.bincount(prompt_of_image, minlength=len(tokens))
            entries |= {source: tokens * merged, **dict.fromkeys((grid_key, *others), images)}
        given = {key: inputs[key] for key in entries if inputs.get(key) is not None}
        for key, value in given.items():
            if len(value) != entries[key].sum():
                raise ValueError(f"`{key}` has {len(value)} entries, but the prompts need {int(entries[key].sum())}.")
        return {
            key: torch.cat([own for own in value.split(entries[key].tolist()) for _ in range(times)])
            for key, value in given.items()
        }


__all__ = ["RosettaGenerationMixin"]
