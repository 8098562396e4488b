"""Which experts the tokens of texts go to."""

from pathlib import Path

import torch

from modeling_rosetta import RosettaForCausalLMAndImageGeneration


@torch.no_grad()
def text_routing(model: RosettaForCausalLMAndImageGeneration, rows: torch.Tensor) -> torch.Tensor:
    """
    The share of choices that fall on each expert of the pool that serves text, in each layer: `(layers, experts)`,
    rows of which sum to 1 (paper, Fig. 6).

    Args:
        model ([`RosettaForCausalLMAndImageGeneration`])
        rows (`torch.LongTensor` of shape `(N, L)`): token ids.
    """
    pool = model.config.token_types[0]["expert_pool"]
    counts = []

    def count(layer: int):
        def hook(router, args, output):
            _, _, index = output
            counts[layer] += torch.bincount(index.flatten(), minlength=len(counts[layer]))

        return hook

    handles = []
    for number, layer in enumerate(model.model.layers):
        counts.append(torch.zeros(model.config.expert_pools[pool], dtype=torch.long))
        handles.append(layer.mlp.pools[pool].router.register_forward_hook(count(number)))
    model.eval()
    try:
        for batch in rows.split(32):
            model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    counts = torch.stack(counts).double()
    return counts / counts.sum(1, keepdim=True)


def total_variation(before: torch.Tensor, after: torch.Tensor) -> float:
    """How far apart two routings are, from 0 to 1, in the mean over layers."""
    return float((before - after).abs().sum(1).mean() / 2)


def save_routing_map(routings: dict[str, torch.Tensor], path: str | Path):
    """Heat maps of routings by name, side by side: a row a layer, a column an expert."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(routings), figsize=(3.2 * len(routings), 2.2), squeeze=False, layout="constrained"
    )
    largest = max(float(routing.max()) for routing in routings.values())
    for axis, (name, routing) in zip(axes.flat, routings.items(), strict=True):
        image = axis.imshow(routing, vmin=0, vmax=largest, cmap="viridis", aspect="auto")
        axis.set(title=name, xlabel="expert", ylabel="layer", yticks=range(len(routing)))
    figure.colorbar(image, ax=axes, label="share of choices")
    figure.savefig(path, dpi=120)
    plt.close(figure)
