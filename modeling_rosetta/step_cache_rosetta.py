"""Steps that do not run the layers of the transformer, as what these add to the latents hardly changes."""

import torch


class StepCache:
    """
    Runs the transformer for a step, or takes from an earlier one what its layers have added to the embedded latents:
    as long as the embeddings have changed by less than `threshold` since, their relative L1 changes from step to step
    added up (the measure of TeaCache, https://arxiv.org/abs/2411.19108, on embeddings that know the time). The blocks
    before and after the layers run in every step, at the step's own time. It decides for all images of a call at once.

    Args:
        transformer ([`RosettaForCausalLMAndImageGeneration`])
        threshold (`float`): 0 runs every step.
    """

    def __init__(self, transformer, threshold: float):
        self.transformer, self.threshold = transformer, threshold
        self._prompt_inputs: dict | None = None
        self._embeds = self._added = torch.empty(0)
        self._change = 0.0

    def velocity(self, prompt_inputs: dict, noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The velocity `(L, C)` of `noisy_latents` `(L, C)` at `timesteps` `(I,)`, after `prompt_inputs`."""
        if self.threshold == 0:
            return self._run(prompt_inputs, noisy_latents, timesteps)
        latent_in, latent_out = self.transformer.model.latent_in, self.transformer.latent_out
        grids = prompt_inputs["latent_grid_hw"].tolist()
        if prompt_inputs is self._prompt_inputs:
            embeds = latent_in(noisy_latents.to(self._embeds.dtype), timesteps, grids)
            self._change += float((embeds - self._embeds).abs().mean() / self._embeds.abs().mean())
            self._embeds = embeds
            if self._change < self.threshold:
                return latent_out(embeds + self._added, timesteps, grids)
        seen = {}
        hooks = [
            latent_in.register_forward_hook(lambda module, inputs, output: seen.update(embeds=output)),
            latent_out.register_forward_pre_hook(lambda module, inputs: seen.update(hidden_states=inputs[0])),
        ]
        try:
            velocity = self._run(prompt_inputs, noisy_latents, timesteps)
        finally:
            for hook in hooks:
                hook.remove()
        self._prompt_inputs, self._change = prompt_inputs, 0.0
        self._embeds, self._added = seen["embeds"], seen["hidden_states"] - seen["embeds"]
        return velocity

    def _run(self, prompt_inputs: dict, noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        velocity = self.transformer(
            **prompt_inputs, noisy_latents=noisy_latents, timesteps=timesteps, logits_to_keep=1
        ).velocity
        # The next step reads the prompt's keys and values again, but not this step's.
        prompt_inputs["past_key_values"].crop(-prompt_inputs["input_ids"].shape[1])
        return velocity


__all__ = ["StepCache"]
