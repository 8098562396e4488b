"""Converted weights draw, answer and go on as the authors' inference does."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from modeling_rosetta import RosettaPipeline
from modeling_rosetta.positions_rosetta import get_rope_index
from tests.hub_upload import authors
from tests.hub_upload.authors import ARCHITECTURES, LATENTS, LOGITS, VELOCITY
from tests.modeling_rosetta.tiny_pipeline import tiny_processor


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drawing(architecture):
    """Tokens, routes, noise, and the latents after every step, with guidance."""
    results = {
        k.removeprefix(f"{architecture}."): v
        for k, v in authors.sampling().items()
        if k.startswith(f"{architecture}.")
    }
    model, processor = authors.model(architecture, inference=True), tiny_processor()
    if architecture == "mot":
        processor.embeds_from, processor.latent_prefix_type = [t["embeds_from"] for t in model.config.token_types], 3
    rows = processor.draw_prompt("a red stone", 48, 80)
    assert torch.equal(rows["input_ids"], results["in.input_ids"])
    assert torch.equal(rows["token_type_ids"] == 2, results["in.image_mask"])
    if architecture == "mot":
        streams = [t["attention_stream"] for t in model.config.token_types]
        of_generation = torch.tensor([stream == "gen" for stream in streams])[rows["token_type_ids"]]
        assert torch.equal(of_generation.nonzero()[:, 1].view(2, -1), results["in.gen_token_indices"])

    pipe = RosettaPipeline(model, None, FlowMatchEulerDiscreteScheduler(), processor)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(noise, results["noise"])
    steps = []
    pipe(
        "a red stone",
        height=48,
        width=80,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors["latents"]) or {},
    )
    expected = [results[f"step.{i}.latents"] for i in range(6)]
    torch.testing.assert_close(steps, expected, rtol=0, atol=LATENTS)
    torch.testing.assert_close(pipe.scheduler.sigmas, results["sigmas"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("step", [0, 1])
def test_velocities_of_both_rows(architecture, step):
    results, model, processor = authors.sampling(), authors.model(architecture, inference=True), tiny_processor()
    if architecture == "mot":
        processor.embeds_from, processor.latent_prefix_type = [t["embeds_from"] for t in model.config.token_types], 3
    latents = results[f"{architecture}.noise"] if step == 0 else results[f"{architecture}.step.0.latents"]
    with torch.no_grad():
        velocity = model(
            **processor.draw_prompt("a red stone", 48, 80),
            noisy_latents=latents[0].flatten(1).T.repeat(2, 1),
            timesteps=results[f"{architecture}.sigmas"][step].expand(2),
        ).velocity
    expected = [results[f"{architecture}.step.{step}.pred_{row}"][0].flatten(1).T for row in ("cond", "uncond")]
    torch.testing.assert_close(velocity, torch.cat(expected), rtol=0, atol=VELOCITY)


def understanding() -> tuple[dict, torch.Tensor]:
    """Their prompt about an image: its clean latents, then its ViT tokens; and their mask, in which the ViT tokens are
    causal."""
    given = {k.removeprefix("und.in."): v for k, v in authors.sampling().items() if k.startswith("und.in.")}
    batch = {
        "input_ids": given["input_ids"],
        "token_type_ids": given["vit_mask"].long() + 2 * given["cond_vae_mask"].long(),
        "pixel_values": given["pixel_values"],
        "image_grid_thw": given["grid_thw"],
        "noisy_latents": given["cond_vae_latents"][0].flatten(1).T,
        "latent_grid_hw": torch.tensor([given["cond_vae_latents"].shape[2:]]),
        "timesteps": given["cond_timesteps"],
    }
    return batch, authors.sampling()["und.attention_mask"]


def test_understanding_of_an_image_given_as_latents_and_pixels():
    """Their greedy continuation, with their mask as the argument."""
    batch, mask = understanding()
    model, results = authors.model("rosetta", inference=True), authors.sampling()
    grids = {1: batch["image_grid_thw"][:, 1:] // 2, 2: batch["latent_grid_hw"]}
    positions = get_rope_index(batch["token_type_ids"], grids)
    assert torch.equal(positions, results["und.position_ids"])
    with torch.no_grad():
        output = model(**batch, attention_mask=mask, use_cache=True)
        torch.testing.assert_close(output.logits[:, -4:], results["und.logits_prefill_last4"], rtol=0, atol=LOGITS)
        generated = batch["input_ids"]
        for step in range(1, 5):
            token = output.logits[:, -1:].argmax(-1)
            generated = torch.cat([generated, token], dim=1)
            output = model(token, position_ids=positions[..., -1:] + step, past_key_values=output.past_key_values)
    assert torch.equal(generated, results["und.generated"])


def test_understanding_in_the_layout_of_their_inference():
    """The same continuation, with a mask of the model's own, cached and not."""
    batch, _ = understanding()
    batch["image_is_causal"] = torch.ones(len(batch["image_grid_thw"]), dtype=torch.long)
    model, results = authors.model("rosetta", inference=True), authors.sampling()
    with torch.no_grad():
        logits = model(**batch).logits
    torch.testing.assert_close(logits[:, -4:], results["und.logits_prefill_last4"], rtol=0, atol=LOGITS)
    for how in ({}, {"use_cache": False}):
        generated = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None, **how)
        assert torch.equal(generated, results["und.generated"])


def test_the_projects_mask_has_full_attention_among_vit_tokens_as_their_training_has():
    batch, mask = understanding()
    model = authors.model("rosetta", inference=True)
    vit = batch["token_type_ids"][0] == 1
    full = mask.clone()
    full[..., vit.nonzero(), vit.nonzero().T] = True
    assert not torch.equal(full, mask)
    with torch.no_grad():
        own, given, theirs = (
            model(**batch, **mask).logits for mask in ({}, {"attention_mask": full}, {"attention_mask": mask})
        )
    torch.testing.assert_close(own, given, rtol=0, atol=1e-5)
    assert (own - theirs).abs().max() > LOGITS


def test_text_goes_on():
    results = authors.sampling()
    prompt = results["lm.in.input_ids"]
    model = authors.model("rosetta", inference=True)
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, results["lm.generated"])
