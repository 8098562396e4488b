"""Prompt in, image out: Rosetta as a diffusers pipeline."""

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_base import LoraBaseMixin
from transformers import PreTrainedModel, ProcessorMixin


# diffusers downloads the files that it finds imported here, and theirs. While it reads a repository with a dot in its
# name it cannot run such imports, so they stand here or in methods.
if TYPE_CHECKING:
    from .buckets_rosetta import nearest_bucket  # noqa: F401
    from .cache_names_rosetta import CACHE  # noqa: F401
    from .drawing_steps_rosetta import Step
    from .flow_scheduler_rosetta import in_use  # noqa: F401
    from .images_rosetta import read_image  # noqa: F401
    from .latent_codec_rosetta import decode_latents  # noqa: F401
    from .latent_roles_rosetta import has_latents  # noqa: F401
    from .modeling_rosetta import RosettaForCausalLMAndImageGeneration  # noqa: F401
    from .positions_rosetta import get_rope_index  # noqa: F401
    from .processing_rosetta import RosettaProcessor  # noqa: F401
    from .quantization_rosetta import RosettaQuantizationConfig  # noqa: F401
    from .source_images_rosetta import SourceImages  # noqa: F401
    from .step_cache_rosetta import StepCache  # noqa: F401

# To check a component that is passed to `from_pretrained`, diffusers looks in here for the class that model_index.json
# declares and for the library's class that it derives from.
declared = sys.modules["repository_rosetta"] = ModuleType("repository_rosetta")
declared.RootModel = declared.PreTrainedModel = PreTrainedModel
declared.RootProcessor = declared.ProcessorMixin = ProcessorMixin


class RosettaPipeline(DiffusionPipeline, LoraBaseMixin):
    r"""
    Draws images with [`RosettaForCausalLMAndImageGeneration`] by flow matching (paper, 3.3): the prompt's keys and
    values are computed once, then every step predicts the velocity of the images alone.

    One pipeline makes one drawing at a time. Threads draw at once with a pipeline each, of the same components, that
    has a scheduler of its own: `type(pipe)(**{**pipe.components, "scheduler": another})`.

    Args:
        transformer ([`RosettaForCausalLMAndImageGeneration`]): `None` if nothing is to be drawn or saved.
        vae ([`AutoencoderKLFlux2`]): decodes the latents; `None` if only latents are wanted.
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): or another of diffusers for flow matching, such as Heun, or
            UniPC, DPM++, DEIS and SA-Solver with `use_flow_sigmas=True, prediction_type="flow_prediction"`.
        processor ([`RosettaProcessor`])

    Raises:
        ValueError: if the parts do not fit together.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]
    _optional_components = ["transformer", "vae"]
    _lora_loadable_modules = ["transformer"]

    def __init__(
        self,
        transformer: PreTrainedModel,
        vae: AutoencoderKLFlux2,
        scheduler: FlowMatchEulerDiscreteScheduler,
        processor: ProcessorMixin,
    ):
        from .drawing_checks_rosetta import check_parts

        super().__init__()
        check_parts(transformer, vae, processor)
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, processor=processor)
        self.image_processor = VaeImageProcessor()

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    def is_guided_at(self, sigma: float) -> bool:
        """Whether a step at this time has guidance."""
        first, last = self._guidance_interval
        return self.do_classifier_free_guidance and first <= sigma <= last

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        system_prompt: str | None = None,
        max_sequence_length: int = 512,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        What the transformer makes of prompts, to be kept and given to calls in their place: needs neither `vae` nor
        `scheduler`. The size of the image comes later.

        Args:
            prompt, negative_prompt, system_prompt, max_sequence_length: as in the call.
            do_classifier_free_guidance (`bool`, defaults to `True`): whether to return the negative ones.

        Returns:
            `tuple`: `prompt_embeds` `(N, P, 2 * layers * heads * head_dim)`, keys and values of P tokens, and
            `prompt_embeds_mask` `(N, P)`, 0 for padding; then the same of the negative prompts, or `None` twice.
        """
        from .prompts_rosetta import lay_out

        prompts = lay_out(self, prompt, negative_prompt, None, None, system_prompt, max_sequence_length)
        prompt_embeds, prompt_embeds_mask, *others = [
            tensor for encoded in prompts.encode(do_classifier_free_guidance) for tensor in encoded
        ]
        negative_prompt_embeds, negative_prompt_embeds_mask = others or (None, None)
        return prompt_embeds, prompt_embeds_mask, negative_prompt_embeds, negative_prompt_embeds_mask

    def predict_velocity(self, latents: torch.Tensor, sigma: torch.Tensor, prompt_inputs: dict) -> torch.Tensor:
        """Noise - data of `latents` `(N, C, h, w)` at `sigma` in [0, 1], with guidance; `(N, C, h, w)` in fp32."""
        from .drawing_steps_rosetta import tokens_of_rows

        tokens, timesteps = tokens_of_rows(latents, sigma, prompt_inputs)
        return self.guide(self._step_cache.velocity(prompt_inputs, tokens, timesteps), latents)

    def guide(self, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What guidance makes of the velocity `(L, C)` of all rows of a step, for `latents` `(N, C, h, w)`;
        `(N, C, h, w)` in fp32."""
        from .guidance_rosetta import guided

        velocity = velocity.float().unflatten(0, (-1, latents[0, 0].numel())).transpose(1, 2)
        conditional, *others = velocity.unflatten(2, latents.shape[2:]).split(len(latents))
        if not others:
            return conditional
        unconditional, *without_images = others
        how = (self._guidance_scale, self._guidance_rescale, self._use_zero_star)
        return guided(conditional, unconditional, *how, *without_images, image_scale=self._image_guidance_scale)

    def steps(self, *args, **kwargs) -> Generator["Step", torch.Tensor, ImagePipelineOutput | tuple]:
        """
        A drawing that stops at each step, for those who compute the steps of several drawings together.

        Args:
            args, kwargs: as of the call.

        Returns:
            A generator of [`~drawing_steps_rosetta.Step`], what the transformer is to run on; it is sent the velocity
            that `guide` returns, and returns what the call does. `close()` ends a drawing early.
        """
        from .drawing_steps_rosetta import drawing_steps

        given = signature(type(self).__call__).bind(self, *args, **kwargs)
        given.apply_defaults()
        return drawing_steps(*given.args)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image=None,
        height: int | None = None,
        width: int | None = None,
        strength: float | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float = 5.0,
        image_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        use_zero_star: bool = False,
        step_cache_threshold: float = 0.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        system_prompt: str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict | None = None,
        callback_on_step_end: Callable[["RosettaPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
        max_sequence_length: int = 512,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Args:
            prompt (`str` or `list[str]`): what to draw.
            negative_prompt (`str` or `list[str]`, *optional*): what guidance leads away from; by default `<｜cfg｜>`
                in place of each token of the prompt, as in training. Costs nothing beside guidance.
            image (*optional*): what to draw from, as [`~images_rosetta.read_image`] takes it: an image for all
                prompts, a list of several for one, or a list with an image or a list for each. It is read once, before
                the prompt, as the processor's `layout` and `image_embeds_from` say.
            height, width (`int`, *optional*): in pixels; by default the size for images of the shape of `image`, or
                the square that the model was trained around.
            strength (`float`, *optional*): in (0, 1]: `image` is not read, but drawn over: mixed with noise as far as
                at this time, from where the steps start. For models that have not learned to draw from images.
            num_inference_steps (`int`, defaults to 50)
            sigmas (`list[float]`, *optional*): the times to step through in place of `num_inference_steps` equal
                steps; 1 is noise, the last step goes to 0. Not every scheduler takes them.
            timesteps (`list[float]`, *optional*): the same, times the scheduler's `num_train_timesteps`.
            guidance_scale (`float`, defaults to 5.0): the velocity is unconditional + scale * (conditional -
                unconditional). Up to 1 there is no guidance, and a step costs half. Callbacks change, begin or end it
                for the steps after theirs: `pipe._guidance_scale = 1.0`. Begun, it reads the unconditional prompts
                first, once; ended, it costs nothing more.
            image_guidance_scale (`float`, *optional*): guides by `image`, too, away from the unconditional velocity
                without it: above 1, the drawing is truer to it. A step then costs three times one without guidance.
            guidance_rescale (`float`, defaults to 0.0): in [0, 1], against the glaring contrast and the likeness of
                images at high scales: how far the velocity gets the deviation of the conditional one. Costs nothing.
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`): the times from and to which there is
                guidance, as in `sigmas`; a step outside costs half. At late times it does least.
            use_zero_star (`bool`, defaults to `False`): guides by what is not in line with the unconditional velocity
                (CFG-Zero*), for models that have not learned the latter well. Costs nothing.
            step_cache_threshold (`float`, defaults to 0.0): above 0, steps at which the embedded image has changed by
                less than this share do not run the layers: see [`~step_cache_rosetta.StepCache`]. The image changes
                a little: at 0.1, 18 of 50 steps ran in the miniature, and the latents changed by 2%.
            num_images_per_prompt (`int`, defaults to 1)
            generator (`torch.Generator` or a list with one for each image, *optional*): for the noise, also what a
                stochastic scheduler adds.
            latents (`torch.Tensor` of shape `(N, C, h, w)`, *optional*): the noise itself.
            prompt_embeds, prompt_embeds_mask, negative_prompt_embeds, negative_prompt_embeds_mask (`torch.Tensor`,
                *optional*): from `encode_prompt`, in place of `prompt` and `negative_prompt`; each with its mask.
            system_prompt (`str`, *optional*): a system's turn before each prompt, also the negative ones.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` `(N, H, W, 3)` in [0, 1], `"pt"` `(N, 3, H, W)`
                in [0, 1], or `"latent"` `(N, C, h, w)`, as `decode_latents` and the `latents` argument take them.
            return_dict (`bool`, defaults to `True`)
            attention_kwargs (`dict`, *optional*): `{"scale": float}` scales the LoRA adapters for this call.
            callback_on_step_end (`Callable`, *optional*): called as `callback(pipeline, step, timestep, tensors)`
                after each step; returns the tensors it replaces.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`): also `"prompt_embeds"`.
            max_sequence_length (`int`, defaults to 512): the most tokens that a prompt may have with its markup.

        Returns:
            [`ImagePipelineOutput`], or a tuple of the images: those of the first prompt, then those of the second, ...

        Raises:
            ValueError: if an argument is not valid, or the pipeline lacks a part.
            RuntimeError: if another drawing with this pipeline's scheduler has not ended.
        """
        drawing, velocity = self.steps(**{name: value for name, value in locals().items() if name != "self"}), None
        with closing(drawing):
            while True:
                try:
                    step = drawing.send(velocity)
                except StopIteration as drawn:
                    return drawn.value
                velocity = self.predict_velocity(*step)

    def decode_latents(self, latents: torch.Tensor, output_type: str = "pil"):
        """
        The images of latents, as the call ends with them: for those of a step, and after `output_type="latent"`.

        Args:
            latents (`torch.Tensor` of shape `(N, C, h, w)`)
            output_type (`str`, defaults to `"pil"`): as in the call, but for `"latent"`.

        Returns:
            As the call: a list of N `PIL.Image.Image`, an array or a tensor.

        Raises:
            ValueError: if the pipeline has no `vae`.
        """
        from .latent_codec_rosetta import decode_latents

        if self.vae is None:
            raise ValueError("`vae` must be part of the pipeline to decode latents, it is None.")
        return self.image_processor.postprocess(decode_latents(self.vae, latents), output_type=output_type)

    def answer(self, conversation: list[dict] | list[list[dict]], **arguments) -> dict | list[dict]:
        """Text and images in one answer, with `stream_answer` as they come: see [`~answering_rosetta.answer`]."""
        from .answering_rosetta import answer

        return answer(self, conversation, **arguments)

    def stream_answer(self, conversation: list[dict] | list[list[dict]], **arguments) -> Iterator:
        from .answering_rosetta import stream_answer

        return stream_answer(self, conversation, **arguments)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str | None = None,
        **hub_arguments,
    ):
        """
        Loads an adapter into the transformer and makes it the active one, also for answers: see
        [`~adapters_rosetta.load_lora`]. `set_adapters`, `disable_lora`, `delete_adapters`, `unload_lora_weights` and
        so on are diffusers'.
        """
        from .adapters_rosetta import load_lora

        load_lora(self.transformer, pretrained_model_name_or_path, adapter_name, **hub_arguments)

    def save_lora_weights(self, save_directory: str | os.PathLike):
        """Saves the active adapter, as `load_lora_weights` and peft load it."""
        self.transformer.save_pretrained(save_directory)

    def fuse_lora(self, components: list[str] | tuple[str, ...] = ("transformer",), lora_scale: float = 1.0, **kwargs):
        """Adds the adapters to the weights, for speed: `unload_lora_weights` then leaves these so, to be saved."""
        super().fuse_lora(list(components), lora_scale, **kwargs)

    def unfuse_lora(self, components: list[str] | tuple[str, ...] = ("transformer",), **kwargs):
        super().unfuse_lora(list(components), **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
    ):
        """
        Saves one folder, with one copy of the weights, that `AutoConfig`, `AutoProcessor`, `AutoModelForCausalLM` and
        `DiffusionPipeline` load with `trust_remote_code=True`. See [`save_repository`].

        Args:
            save_directory (`str` or `os.PathLike`)
            max_shard_size (`int` or `str`, *optional*): the most bytes of a file of weights, e.g. `"5GB"`.

        Raises:
            ValueError: before anything is written, if another argument is not its default, or a part cannot be saved
                whole, such as a transformer with adapters or with weights on the meta device.
        """
        from .diffusers_methods_rosetta import PUBLISHING
        from .repository_rosetta import save_repository

        if not safe_serialization or variant is not None:
            raise ValueError(
                "`safe_serialization` must be True and `variant` None: a Rosetta repository holds one copy of the "
                "weights, which both libraries load, as safetensors; another precision is a folder or a branch of its "
                f"own, or `torch_dtype` at loading. Got {safe_serialization} and {variant!r}."
            )
        if push_to_hub or use_flashpack:
            raise ValueError(
                f"`push_to_hub` and `use_flashpack` must be False, got {push_to_hub} and {use_flashpack}. {PUBLISHING}"
            )
        save_repository(self, save_directory, max_shard_size)

    def push_to_hub(self, *args, **kwargs):
        """Is refused, as it would make a repository before its content is checked, with an empty card."""
        from .diffusers_methods_rosetta import PUBLISHING

        raise NotImplementedError(PUBLISHING)


__all__ = ["RosettaPipeline"]
