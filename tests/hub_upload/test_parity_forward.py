"""Converted weights give the authors' outputs, losses and routing."""

import pytest
import torch

from modeling_rosetta.positions_rosetta import get_rope_index
from tests.hub_upload import authors
from tests.hub_upload.authors import ARCHITECTURES, LOGITS, VELOCITY


CASES = [*((architecture, "mix") for architecture in ARCHITECTURES), ("rosetta", "multi")]


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    architecture, name = request.param
    batch, model, layers = authors.packed_batch(architecture, name), authors.model(architecture), []
    model.model.norm.register_forward_pre_hook(lambda _, args: layers.append(args[0]))
    with torch.no_grad():
        output = model(**batch, logits_to_keep=0, output_router_logits=True)
    output.last_layer = layers[0]
    return architecture, name, batch, output


def test_logits(case):
    architecture, name, batch, output = case
    results = authors.results(architecture)
    if name == "mix":
        actual, expected = output.logits, results["mix.out.logits"]
    else:
        actual = output.logits[:, :-1][batch["labels"][:, 1:] != -100]
        expected = results["multi.out.logits_at_labels"]
    if architecture == "mot":
        # Their logits are zero, and not used, where an image is drawn; here they are what the head gives.
        drawn = batch["token_type_ids"] == 2
        assert not expected[drawn].any()
        actual, expected = actual[~drawn], expected[~drawn]
    close(actual, expected, LOGITS)


def test_velocity(case):
    architecture, name, _, output = case
    close(output.velocity, authors.velocity_tokens(architecture, name), VELOCITY)


def test_losses(case):
    architecture, name, _, output = case
    expected = authors.losses()[architecture]["losses"][f"{name}.shield_off"]
    task = "lm" if name == "mix" else "t2i"
    layers = output.router_logits
    assert output.text_loss.item() == pytest.approx(expected[f"{task}_text_loss"], rel=1e-5)
    assert output.flow_loss.item() == pytest.approx(expected[f"{task}_image_loss"], rel=1e-5)
    # They report the mean over layers and optimize the sum, as this project does.
    balance = expected["moe_loss"] + expected.get("moe_loss_mot_gen", 0)
    assert output.aux_loss.item() / len(layers) == pytest.approx(balance, rel=1e-5)
    assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-5)


def test_capacity_rates(case):
    architecture, name, _, output = case
    expected = authors.losses()[architecture]["losses"][f"{name}.shield_off"]
    key = {"all": "capacity_rate", "und": "capacity_rate", "gen": "capacity_rate_mot_gen"}
    for pool, rate in output.capacity_rate.items():
        assert rate.item() == pytest.approx(expected[key.get(pool, f"capacity_rate_{pool}")], rel=1e-6), pool


def test_routing(case):
    """Exactly their experts, in their order, with their weights."""
    architecture, name, batch, output = case
    results, types = authors.results(architecture), batch["token_type_ids"].flatten()
    first_expert = {"vit": 3, "vae": 6}  # they number the experts of all pools through
    types_of_pool = {"text": [0], "vit": [1], "vae": [2], "all": [0, 1, 2], "und": [0, 1], "gen": [2]}
    for number, layer in enumerate(output.router_logits):
        for pool, logits in layer.items():
            block = f"{name}.layer.{number}.mlp{'_mot_gen' if pool == 'gen' else ''}"
            expected_index, expected_weights = results[f"{block}.topk_idx"], results[f"{block}.topk_weights"]
            if architecture != "mot":
                of_pool = torch.isin(types, torch.tensor(types_of_pool[pool]))
                expected_index, expected_weights = expected_index[of_pool], expected_weights[of_pool]
            weights, index = logits.softmax(-1).topk(2)
            assert torch.equal(index + first_expert.get(pool, 0), expected_index)
            close(weights / weights.sum(-1, keepdim=True), expected_weights, 2e-5)


def test_layers(case):
    architecture, name, batch, output = case
    results, types = authors.results(architecture), batch["token_type_ids"]
    # After the last layer nothing is added any more; the layers before them get DeepStack features on top.
    last = len(output.router_logits) - 1
    compared = types != 1 if last < 2 else torch.ones_like(types, dtype=torch.bool)
    if architecture == "mot":
        expected = torch.empty_like(output.last_layer)
        expected[types != 2], expected[types == 2] = (results[f"{name}.layer.{last}.out.{s}"] for s in ("und", "gen"))
    else:
        expected = results[f"{name}.layer.{last}.out"]
    close(output.last_layer[compared], expected[compared], LOGITS)


@pytest.mark.parametrize("architecture, name", CASES)
def test_positions(architecture, name):
    batch = authors.packed_batch(architecture, name)
    grids = {1: batch["image_grid_thw"][:, 1:] // 2, 2: batch["latent_grid_hw"]}
    assert torch.equal(get_rope_index(batch["token_type_ids"], grids), batch["position_ids"])


@pytest.mark.parametrize("architecture, name", CASES)
def test_mask_is_the_authors(architecture, name):
    """Their dense mask gives what the mask made of `sequence_ids` gives."""
    batch = authors.packed_batch(architecture, name)
    mask = authors.results(architecture)[f"{name}.in.attention_mask"]
    model = authors.model(architecture)
    with torch.no_grad():
        packed = model(**batch)
        del batch["sequence_ids"]
        masked = model(**batch, attention_mask=mask)
    close(packed.velocity, masked.velocity, 1e-6)
    close(packed.text_loss, masked.text_loss, 1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_only(architecture):
    results = authors.results(architecture)
    with torch.no_grad():
        logits = authors.model(architecture)(results["text.in.input_ids"]).logits
    close(logits, results["text.out.logits"], LOGITS)


def test_rotary_embedding():
    results = authors.results("rosetta")
    cos, sin = authors.model("rosetta").model.rotary_emb(torch.zeros(1), results["mix.in.position_ids"])
    close(cos, results["mix.rope.cos"], 1e-6)
    close(sin, results["mix.rope.sin"], 1e-6)


@pytest.mark.parametrize("name", ["mix", "multi"])
def test_vision_features(name):
    batch, results = authors.packed_batch("rosetta", name), authors.results("rosetta")
    with torch.no_grad():
        features, deepstack = authors.model("rosetta").model._embed_images(
            batch["pixel_values"], batch["image_grid_thw"]
        )
    images = range(len(batch["image_grid_thw"]))
    close(features, torch.cat([results[f"{name}.vit.{i}.merged"][0] for i in images]), 1e-5)
    for level, features in enumerate(deepstack):
        close(features, torch.cat([results[f"{name}.vit.{i}.deepstack.{level}"] for i in images]), 1e-5)
