"""FLOPs of training against torch's count of what is run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration
from trainer import training_flops
from trainer.figures.batch_counts import count_batch
from trainer.figures.flops import PEAK_TFLOPS, peak_flops
from trainer.stages.freezing import train_backbone, train_projectors, train_token_types


ROWS, TEXT, DRAWN, SEEN = 2, 10, 9, 4
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 256, "latent_hidden_size": 64, "head_dim": 32}
VISION = {"out_hidden_size": 64, "hidden_size": 32, "depth": 2, "deepstack_visual_indexes": [0]}


@pytest.fixture
def batch():
    """Two rows without padding: text, an image of 2 x 2 tokens to understand, one of 3 x 3 to draw."""
    types = torch.tensor([0] * TEXT + [1] * SEEN + [2] * DRAWN).expand(ROWS, -1)
    ids = torch.randint(0, 60, types.shape, generator=torch.Generator().manual_seed(0)).masked_fill(types > 0, 60)
    return {
        "input_ids": ids,
        "token_type_ids": types,
        "labels": ids.masked_fill(types > 0, -100),
        "pixel_values": torch.randn(ROWS * SEEN * 4, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * ROWS),
        "noisy_latents": torch.randn(ROWS * DRAWN, 8),
        "latent_grid_hw": torch.tensor([[3, 3]] * ROWS),
        "timesteps": torch.rand(ROWS),
        "velocity_labels": torch.randn(ROWS * DRAWN, 8),
    }


@pytest.fixture
def model_of(config):
    def build(variant=RosettaConfig, **changes):
        torch.manual_seed(0)
        vision = {**config().vision_config.to_dict(), **VISION}
        model = RosettaForCausalLMAndImageGeneration(config(variant, **{**SIZES, "vision_config": vision, **changes}))
        model.set_attn_implementation("eager")  # what torch can count
        model.config._experts_implementation = "eager"
        return model.train()

    return build


def _counted(model, batch) -> dict[str, int]:
    # torch does not count the product of a gradient that is added up in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, out_shape=None, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(**batch).loss.backward()
    return counter.get_total_flops()


def _expected(model, batch) -> float:
    types = [t["name"] for t in model.config.token_types]
    held = count_batch(batch, len(types))
    counts = {f"num_tokens_{name}": tokens for name, tokens in zip(types, held.tokens, strict=True)}
    counts["num_text_targets"] = (batch["labels"][:, 1:] != -100).sum()
    counts["num_latent_images"] = len(batch["latent_grid_hw"])
    counts["attention_pairs"] = 2 * held.attention_pairs  # eager attention computes what is masked, too
    counts["vit_pairs"] = held.vit_pairs
    return float(sum(flops * counts[unit] for unit, flops in training_flops(model).items()))


@pytest.mark.parametrize(
    ("variant", "freeze", "changes"),
    [
        (RosettaConfig, train_backbone, {}),
        (RosettaConfig.moe, train_backbone, {}),
        (RosettaConfig.mot, train_backbone, {}),
        (RosettaConfig, train_projectors, {}),
        (RosettaConfig, lambda model: train_token_types(model, "vae"), {}),
        (RosettaConfig, lambda model: model, {"tie_word_embeddings": False}),
    ],
    ids=["Rosetta", "MoE", "MoT", "projectors", "what serves VAE tokens", "all, ViT too, with a head of its own"],
)
def test_it_is_what_torch_counts(variant, freeze, changes, model_of, batch):
    model = freeze(model_of(variant, **changes))
    assert _expected(model, batch) == pytest.approx(_counted(model, batch), rel=5e-3)


def test_padding_and_other_samples_cost_nothing(batch):
    """Rows of 6 tokens: two samples of 2 and 3 tokens, and one of 4; the rest is padding."""
    packed = {
        "input_ids": torch.zeros(2, 6, dtype=torch.long),
        "token_type_ids": torch.tensor([[0, 2, 0, 0, 2, 2], [0, 0, 1, 0, 0, 0]]),
        "sequence_ids": torch.tensor([[7, 7, 3, 3, 3, -1], [9, 9, 9, 9, -1, -1]]),
    }
    held = count_batch(packed, 3)
    assert held.samples == 3
    assert held.tokens.tolist() == [6, 1, 2]
    assert held.samples_with.tolist() == [3, 1, 2]
    assert held.attention_pairs == 2**2 + 3**2 + 4**2
    padded = {"input_ids": packed["input_ids"], "attention_mask": torch.tensor([[1] * 5 + [0], [1] * 2 + [0] * 4])}
    held = count_batch(padded, 3)
    assert held.samples == 2 and held.tokens.tolist() == [7, 0, 0] and held.attention_pairs == 5**2 + 2**2
    assert count_batch(batch, 3).vit_pairs == ROWS * (4 * SEEN) ** 2


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H20", PEAK_TFLOPS["H20"]),
        ("NVIDIA H200", PEAK_TFLOPS["H200"]),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_is_that_of_the_device(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == (peak and peak * 1e12)
    assert peak_flops(torch.device("cpu")) is None


def test_authors_size_needs_six_for_each_active_weight():
    """Rosetta-3.8B-A1B has 0.97B active parameters without the embedding (paper, Table 4)."""
    with torch.device("meta"):
        model = train_backbone(RosettaForCausalLMAndImageGeneration(RosettaConfig()))
    flops = training_flops(model)
    assert flops["num_tokens_text"] / 6 == pytest.approx(0.97e9, rel=0.01)
    assert flops["num_text_targets"] == 6 * 157420 * 1024
