"""A drawing, one step after another: all that a call of the pipeline does but run the transformer for the steps."""

import math
from collections.abc import Generator
from inspect import signature
from typing import NamedTuple

import torch
from diffusers import ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from .adapters_rosetta import lora_scaled
from .drawing_checks_rosetta import check_inputs
from .flow_scheduler_rosetta import in_use, set_times
from .prompts_rosetta import lay_out
from .source_images_rosetta import SourceImages, noise_of
from .step_cache_rosetta import StepCache


class Step(NamedTuple):
    """What a step predicts the velocity from: `latents` `(N, C, h, w)`, their time, and `prompt_inputs` of
    [`~prompts_rosetta.Prompts.inputs`], a row for each image, then with guidance the other rows."""

    latents: torch.Tensor
    sigma: torch.Tensor
    prompt_inputs: dict


def tokens_of_rows(
    latents: torch.Tensor, sigma: torch.Tensor, prompt_inputs: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """The transformer's `noisy_latents` `(L, C)` and `timesteps` `(R,)` of the R rows of a step."""
    num_rows = len(prompt_inputs["input_ids"])
    tokens = latents.flatten(2).transpose(1, 2)
    return tokens.repeat(num_rows // len(latents), 1, 1).flatten(0, 1), sigma.expand(num_rows)


@torch.no_grad()
def drawing_steps(
    pipe,
    prompt,
    negative_prompt,
    image,
    height,
    width,
    strength,
    num_inference_steps,
    sigmas,
    timesteps,
    guidance_scale,
    image_guidance_scale,
    guidance_rescale,
    guidance_interval,
    use_zero_star,
    step_cache_threshold,
    num_images_per_prompt,
    generator,
    latents,
    prompt_embeds,
    prompt_embeds_mask,
    negative_prompt_embeds,
    negative_prompt_embeds_mask,
    system_prompt,
    output_type,
    return_dict,
    attention_kwargs,
    callback_on_step_end,
    callback_on_step_end_tensor_inputs,
    max_sequence_length,
) -> Generator[Step, torch.Tensor, ImagePipelineOutput | tuple]:
    """See [`~pipeline.RosettaPipeline.steps`]; the arguments are those of the call."""
    # 1. Check the arguments
    if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
        callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
    tensor_inputs = callback_on_step_end_tensor_inputs or ()
    encoded = ((prompt_embeds, prompt_embeds_mask), (negative_prompt_embeds, negative_prompt_embeds_mask))
    check_inputs(
        pipe,
        prompt=prompt,
        negative_prompt=negative_prompt,
        encoded=encoded,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        sigmas=sigmas,
        timesteps=timesteps,
        guidance=(guidance_scale, guidance_rescale, guidance_interval, use_zero_star),
        step_cache_threshold=step_cache_threshold,
        num_images_per_prompt=num_images_per_prompt,
        generator=generator,
        latents=latents,
        system_prompt=system_prompt,
        output_type=output_type,
        attention_kwargs=attention_kwargs,
        callback_on_step_end=callback_on_step_end,
        callback_on_step_end_tensor_inputs=tensor_inputs,
        max_sequence_length=max_sequence_length,
    )
    sources = SourceImages(pipe, image, prompt, strength, image_guidance_scale, prompt_embeds)
    pipe._guidance_scale, pipe._guidance_interval = guidance_scale, guidance_interval
    pipe._guidance_rescale, pipe._use_zero_star = guidance_rescale, use_zero_star
    pipe._image_guidance_scale = image_guidance_scale
    pipe._current_timestep, pipe._interrupt = None, False
    device = pipe._execution_device

    with in_use(pipe.scheduler), lora_scaled(pipe.transformer, attention_kwargs):
        # 2. Lay out the tokens: a row for each prompt, and one for each of what guidance leads away from
        generator = list(generator) if isinstance(generator, tuple) else generator
        texts = (prompt, negative_prompt, *sources.size(height, width), system_prompt, max_sequence_length)
        prompts = lay_out(pipe, *texts, encoded, num_images_per_prompt, sources)

        # 3. Set the times
        set_times(pipe.scheduler, num_inference_steps, sigmas, timesteps, math.prod(prompts.grid_hw), device)
        first = sources.first_step(pipe.scheduler)
        timesteps, levels = pipe.scheduler.timesteps[first:], pipe.scheduler.sigmas[first:]
        pipe._num_timesteps = len(timesteps)

        # 4. Draw the noise
        num_images = num_images_per_prompt * prompts.num_prompts
        latents = noise_of(pipe, num_images, prompts.grid_hw, generator, latents)
        latents = sources.started(latents, float(levels[0]))
        for_step = {"generator": generator} if "generator" in signature(pipe.scheduler.step).parameters else {}

        # 5. Denoise; the first step computes the keys and values of the prompts
        pipe._step_cache = StepCache(pipe.transformer, step_cache_threshold)
        with pipe.progress_bar(total=len(timesteps)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if pipe.interrupt:
                    break
                pipe._current_timestep = timestep
                prompt_inputs = prompts.inputs(pipe.is_guided_at(float(levels[i])))
                velocity = yield Step(latents, levels[i].to(device), prompt_inputs)
                latents = pipe.scheduler.step(velocity, timestep, latents, **for_step, return_dict=False)[0]
                if callback_on_step_end is not None:
                    given = {name: prompts.encode()[0][0] for name in tensor_inputs if name == "prompt_embeds"}
                    given |= {name: latents for name in tensor_inputs if name == "latents"}
                    returned = callback_on_step_end(pipe, i, timestep, dict(given))
                    latents = returned.pop("latents", latents)
                    prompts.replace(given.get("prompt_embeds"), returned.pop("prompt_embeds", None))
                progress_bar.update()
        pipe._current_timestep = None

    # 6. Decode the latents
    images = latents if output_type == "latent" else pipe.decode_latents(latents, output_type)
    pipe.maybe_free_model_hooks()
    return ImagePipelineOutput(images=images) if return_dict else (images,)


__all__ = ["Step", "drawing_steps", "tokens_of_rows"]
