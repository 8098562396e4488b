"""Prompt in, image out: Rosetta as a diffusers pipeline."""

import functools
import os
import sys
import threading
from collections.abc import Callable
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, ProcessorMixin


# diffusers downloads the files that it finds imported here, and theirs. While it reads a repository with a dot in its
# name it cannot run such imports, so they stand here or in methods.
if TYPE_CHECKING:
    from .modeling_rosetta import RosettaForCausalLMAndImageGeneration  # noqa: F401
    from .processing_rosetta import RosettaProcessor  # noqa: F401

# To check a component that is passed to `from_pretrained`, diffusers looks in here for the class that model_index.json
# declares and for the library's class that it derives from.
declared = sys.modules["repository_rosetta"] = ModuleType("repository_rosetta")
declared.RootModel = declared.PreTrainedModel = PreTrainedModel
declared.RootProcessor = declared.ProcessorMixin = ProcessorMixin

PUBLISHING = (
    "Save the pipeline with `save_pretrained(folder)`, then publish the folder, checked and with its card, by "
    "`python -m hub_upload push folder --repo-id name/model`, or as it is by `hf upload name/model folder`."
)
_drawing = set()  # the schedulers that are in use, by id
_drawing_lock = threading.Lock()


def _one_at_a_time(call: Callable) -> Callable:
    """A scheduler keeps the state of one drawing: a second one with it is refused while the first goes on."""

    @functools.wraps(call)
    def alone(pipe, *args, **kwargs):
        scheduler = id(pipe.scheduler)
        with _drawing_lock:
            if scheduler in _drawing:
                raise RuntimeError(
                    "This pipeline's scheduler is in use by a drawing that has not ended: give each thread a pipeline "
                    "of the same components with a scheduler of its own, `type(pipe)(**{**pipe.components, "
                    '"scheduler": pipe.scheduler.from_config(pipe.scheduler.config)})`.'
                )
            _drawing.add(scheduler)
        try:
            return call(pipe, *args, **kwargs)
        finally:
            _drawing.discard(scheduler)

    return alone


class RosettaPipeline(DiffusionPipeline):
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
    _callback_tensor_inputs = ["latents"]
    _optional_components = ["transformer", "vae"]

    def __init__(
        self,
        transformer: PreTrainedModel,
        vae: AutoencoderKLFlux2,
        scheduler: FlowMatchEulerDiscreteScheduler,
        processor: ProcessorMixin,
    ):
        super().__init__()
        sources = None if transformer is None else [t["embeds_from"] for t in transformer.config.token_types]
        if None not in (transformer, processor) and processor.embeds_from != sources:
            raise ValueError(
                f"`processor.embeds_from` must be {sources}, as the token types of `transformer`, got "
                f"{processor.embeds_from}: see `processor.set_token_types`."
            )
        if None not in (vae, processor):
            pixels = 2 ** (len(vae.config.block_out_channels) - 1) * vae.config.patch_size[0]
            if processor.latent_patch_size != pixels:
                raise ValueError(
                    f"`processor.latent_patch_size` must be {pixels}, the pixels of a token of this `vae`, got "
                    f"{processor.latent_patch_size}."
                )
        if None not in (vae, transformer) and transformer.config.latent_channels != vae.bn.num_features:
            raise ValueError(
                f"`transformer.config.latent_channels` must be {vae.bn.num_features}, the channels of a token of "
                f"this `vae`, got {transformer.config.latent_channels}."
            )
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, processor=processor)
        self.image_processor = VaeImageProcessor()

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def check_inputs(self, *arguments):
        """Raises a `ValueError` that names the argument: see [`~drawing_checks_rosetta.check_inputs`]."""
        from .drawing_checks_rosetta import check_inputs

        check_inputs(self, *arguments)

    def set_times(self, num_inference_steps: int, sigmas, num_tokens: int, device: torch.device):
        """Sets the scheduler's times; an image has `num_tokens`. See [`~flow_scheduler_rosetta.set_times`]."""
        from .flow_scheduler_rosetta import set_times

        set_times(self.scheduler, num_inference_steps, sigmas, num_tokens, device)
        self._num_timesteps = len(self.scheduler.timesteps)

    def _lay_out(self, prompt, negative_prompt, height, width, max_sequence_length: int) -> dict[str, torch.Tensor]:
        """The rows of the processor, on the device that the pipeline runs on."""
        rows = self.processor.draw_prompt(
            prompt, height, width, negative_prompt, do_classifier_free_guidance=self.do_classifier_free_guidance
        ).to(self._execution_device)
        prompt_length = self._image_columns(rows)[0]
        if prompt_length > max_sequence_length:
            raise ValueError(
                f"`prompt` and `negative_prompt` may have {max_sequence_length} tokens with their markup "
                f"(`max_sequence_length`), got {prompt_length}."
            )
        return rows

    def encode_prompt(self, rows: dict[str, torch.Tensor], num_images_per_prompt: int) -> dict:
        """
        Runs the transformer over all that comes before the images, once.

        Args:
            rows (`dict`): from the processor, R rows.
            num_images_per_prompt (`int`): how often each row is repeated.

        Returns:
            `dict`: what every step gives to the transformer: the tokens from the first that depends on the time to
            the last of the image, and the keys and values of those before them.
        """
        from .positions_rosetta import get_rope_index

        latent_type = self.transformer.config.token_type_index("noisy_latents")
        position_ids = get_rope_index(
            rows["token_type_ids"], {latent_type: rows["latent_grid_hw"]}, rows["attention_mask"]
        )
        start, end = self._image_columns(rows)
        cache = self.transformer(
            input_ids=rows["input_ids"][:, :start],
            token_type_ids=rows["token_type_ids"][:, :start],
            attention_mask=rows["attention_mask"][:, :start],
            position_ids=position_ids[..., :start],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        cache.batch_repeat_interleave(num_images_per_prompt)
        inputs = {
            "input_ids": rows["input_ids"][:, start:end],
            "token_type_ids": rows["token_type_ids"][:, start:end],
            "attention_mask": rows["attention_mask"][:, :end],
            "position_ids": position_ids[..., start:end].transpose(0, 1),
            "latent_grid_hw": rows["latent_grid_hw"],
        }
        inputs = {key: value.repeat_interleave(num_images_per_prompt, dim=0) for key, value in inputs.items()}
        return {**inputs, "position_ids": inputs["position_ids"].transpose(0, 1), "past_key_values": cache}

    def _image_columns(self, rows: dict[str, torch.Tensor]) -> tuple[int, int]:
        """Where the tokens that change from step to step start and end: padding on the left puts all in one place."""
        config = self.transformer.config
        changing = rows["token_type_ids"][0] == config.token_type_index("noisy_latents")
        if config.timestep_token_id is not None:
            changing |= rows["input_ids"][0] == config.timestep_token_id
        columns = changing.nonzero().flatten().tolist()
        return columns[0], columns[-1] + 1

    def prepare_latents(
        self,
        num_images: int,
        grid_hw: list[int],
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """The given noise, or new noise, `(N, C, h, w)` in fp32."""
        shape = (num_images, self.transformer.config.latent_channels, *grid_hw)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device=device, dtype=torch.float32)

    def predict_velocity(self, latents: torch.Tensor, sigma: torch.Tensor, prompt_inputs: dict) -> torch.Tensor:
        """Noise - data of `latents` `(N, C, h, w)` at `sigma` in [0, 1], with guidance; `(N, C, h, w)` in fp32."""
        tokens = latents.flatten(2).transpose(1, 2)
        num_rows = len(prompt_inputs["input_ids"])
        velocity = self.transformer(
            **prompt_inputs,
            noisy_latents=tokens.repeat(num_rows // len(latents), 1, 1).flatten(0, 1),
            timesteps=sigma.expand(num_rows),
            logits_to_keep=1,
        ).velocity
        # The next step reads the prompt's keys and values again, but not this step's.
        prompt_inputs["past_key_values"].crop(-prompt_inputs["input_ids"].shape[1])

        velocity = velocity.float().unflatten(0, (num_rows, -1)).transpose(1, 2).unflatten(2, latents.shape[2:])
        conditional, unconditional = velocity[: len(latents)], velocity[len(latents) :]
        if len(unconditional) == 0:
            return conditional
        return unconditional + self.guidance_scale * (conditional - unconditional)

    @_one_at_a_time
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float = 5.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["RosettaPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
        max_sequence_length: int = 512,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Args:
            prompt (`str` or `list[str]`): what to draw.
            negative_prompt (`str` or `list[str]`, *optional*): what guidance leads away from; by default `<｜cfg｜>`
                in place of each token of the prompt, as in training.
            height, width (`int`, *optional*): in pixels; by default the square that the model was trained around.
            num_inference_steps (`int`, defaults to 50)
            sigmas (`list[float]`, *optional*): the times to step through in place of `num_inference_steps` equal
                steps; 1 is noise, the last step goes to 0. Not every scheduler takes them.
            guidance_scale (`float`, defaults to 5.0): the velocity is unconditional + scale * (conditional -
                unconditional). Up to 1 there is no guidance, and a step costs half. Callbacks change, begin or end it
                for the steps after theirs: `pipe._guidance_scale = 1.0`.
            num_images_per_prompt (`int`, defaults to 1)
            generator (`torch.Generator` or a list with one for each image, *optional*): for the noise, also what a
                stochastic scheduler adds.
            latents (`torch.Tensor` of shape `(N, C, h, w)`, *optional*): the noise itself.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` `(N, H, W, 3)` in [0, 1], `"pt"` `(N, 3, H, W)`
                in [0, 1], or `"latent"` `(N, C, h, w)`, as `decode_latents` and the `latents` argument take them.
            return_dict (`bool`, defaults to `True`)
            callback_on_step_end (`Callable`, *optional*): called as `callback(pipeline, step, timestep, tensors)`
                after each step; returns the tensors it replaces.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`)
            max_sequence_length (`int`, defaults to 512): the most tokens that a prompt may have with its markup.

        Returns:
            [`ImagePipelineOutput`], or a tuple of the images: those of the first prompt, then those of the second, ...

        Raises:
            ValueError: if an argument is not valid, or the pipeline lacks a part.
            RuntimeError: if another drawing with this pipeline's scheduler has not ended.
        """
        from .latent_codec_rosetta import decode_latents

        # 1. Check the arguments
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(
            prompt,
            num_inference_steps,
            sigmas,
            guidance_scale,
            num_images_per_prompt,
            generator,
            latents,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            max_sequence_length,
        )
        self._guidance_scale = guidance_scale
        self._current_timestep = None
        self._interrupt = False
        device = self._execution_device

        # 2. Lay out the tokens: a row for each prompt and, with guidance, an unconditional one for each after them
        generator = list(generator) if isinstance(generator, tuple) else generator
        height, width = (int(side) if isinstance(side, np.integer) else side for side in (height, width))
        lay_out = functools.partial(self._lay_out, prompt, negative_prompt, height, width, max_sequence_length)
        rows = lay_out()
        grid_hw = rows["latent_grid_hw"][0].tolist()

        # 3. Set the times
        self.set_times(num_inference_steps, sigmas, grid_hw[0] * grid_hw[1], device)
        timesteps = self.scheduler.timesteps

        # 4. Draw the noise
        num_images = num_images_per_prompt * (1 if isinstance(prompt, str) else len(prompt))
        latents = self.prepare_latents(num_images, grid_hw, device, generator, latents)
        for_step = {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}

        # 5. Compute the keys and values of the prompts
        prompt_inputs, is_guided = self.encode_prompt(rows, num_images_per_prompt), self.do_classifier_free_guidance

        # 6. Denoise
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                if self.do_classifier_free_guidance != is_guided:  # a callback has begun or ended it
                    is_guided = self.do_classifier_free_guidance
                    prompt_inputs = self.encode_prompt(lay_out(), num_images_per_prompt)
                self._current_timestep = timestep
                velocity = self.predict_velocity(latents, self.scheduler.sigmas[i].to(device), prompt_inputs)
                latents = self.scheduler.step(velocity, timestep, latents, **for_step, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {name: latents for name in callback_on_step_end_tensor_inputs}
                    latents = callback_on_step_end(self, i, timestep, tensors).pop("latents", latents)
                progress_bar.update()
        self._current_timestep = None

        # 7. Decode the latents
        images = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(decode_latents(self.vae, latents), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

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
        from .repository_rosetta import save_repository

        if not safe_serialization or variant is not None:
            raise ValueError(
                "`safe_serialization` must be True and `variant` None: a Rosetta repository holds one copy of the "
                f"weights, as safetensors. Got {safe_serialization} and {variant!r}."
            )
        if push_to_hub or use_flashpack:
            raise ValueError(
                f"`push_to_hub` and `use_flashpack` must be False, got {push_to_hub} and {use_flashpack}. {PUBLISHING}"
            )
        save_repository(self, save_directory, max_shard_size)

    def push_to_hub(self, *args, **kwargs):
        """Is refused, as it would make a repository before its content is checked, with an empty card."""
        raise NotImplementedError(PUBLISHING)


__all__ = ["RosettaPipeline"]
