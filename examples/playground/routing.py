"""See inside: which experts the tokens of a conversation go to."""

import torch
from matplotlib.figure import Figure

from .streaming import MODEL_IN_USE


@torch.no_grad()
def expert_choices(model, inputs: dict) -> dict[str, torch.Tensor]:
    """
    How often the tokens of each type choose each expert of their pool, in each layer.

    Args:
        model ([`RosettaForCausalLMAndImageGeneration`])
        inputs (`dict`): of one conversation, as the processor makes them.

    Returns:
        `dict[str, torch.LongTensor]`: for each token type that occurs, by its name, `(layers, experts)`, rows of which
        sum to its tokens times the experts a token is routed to.
    """
    config, types = model.config, inputs["token_type_ids"].flatten()
    layers = model(**inputs, output_router_logits=True, use_cache=False, logits_to_keep=1).router_logits
    pools = [token_type["expert_pool"] for token_type in config.token_types]
    choices = {}
    for index, (token_type, pool) in enumerate(zip(config.token_types, pools, strict=True)):
        in_pool = torch.tensor([other == pool for other in pools], device=types.device)[types]
        is_own = types[in_pool] == index
        if is_own.any():
            chosen = [layer[pool][is_own].topk(config.num_experts_per_tok).indices.flatten() for layer in layers]
            choices[token_type["name"]] = torch.stack(
                [torch.bincount(layer, minlength=config.expert_pools[pool]) for layer in chosen]
            ).cpu()
    return choices


def choices_for_prompt(
    pipe, prompt: str, image=None, draws: bool = False, seed: int = 0, **arguments
) -> dict[str, torch.Tensor]:
    """
    [`expert_choices`] of a prompt, with an image to understand, and of what is drawn on it.

    Args:
        prompt (`str`)
        image (*optional*): as the processor takes it.
        draws (`bool`, defaults to `False`): the prompt is drawn, and the clean drawing read.
        seed (`int`, defaults to 0), arguments: of the drawing.

    Raises:
        ValueError: if something is not valid, as an image is for a model that reads none.
    """
    content = [{"type": "text", "text": prompt}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    conversation = [{"role": "user", "content": content}]
    with MODEL_IN_USE:
        if draws:
            generator = torch.Generator().manual_seed(seed)
            latents = pipe(prompt, generator=generator, output_type="latent", **arguments).images[0]
            conversation.append(
                {"role": "assistant", "content": [{"type": "latents", "latents": latents.float().cpu()}]}
            )
        inputs = pipe.processor.apply_chat_template(
            conversation, add_generation_prompt=not draws, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return expert_choices(pipe.transformer, inputs.to(pipe.transformer.device))


def heat_map(choices: dict[str, torch.Tensor], num_experts_per_tok: int) -> Figure:
    """The share of the tokens that go to each expert: a map a token type, a row an expert, a column a layer."""
    rows = [counts.shape[1] for counts in choices.values()]
    figure = Figure(figsize=(5.5, 1.2 + sum(0.9 + 0.3 * experts for experts in rows)), layout="constrained", dpi=150)
    axes = figure.subplots(len(choices), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axis, (name, counts) in zip(axes, choices.items(), strict=True):
        num_tokens = int(counts[0].sum()) // num_experts_per_tok
        picture = axis.imshow(counts.T.numpy() / num_tokens, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set(title=f"{name}, {num_tokens} tokens", ylabel="expert", yticks=range(counts.shape[1]))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("layer")
    figure.colorbar(picture, ax=axes, label="share of the tokens")
    return figure


__all__ = ["choices_for_prompt", "expert_choices", "heat_map"]
