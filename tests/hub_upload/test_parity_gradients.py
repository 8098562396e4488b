"""Converted weights get the authors' gradients, with the shared expert shielded and not."""

import pytest
import torch

from hub_upload import revert_state_dict
from tests.hub_upload import authors
from tests.hub_upload.authors import ARCHITECTURES, GRADIENTS


CASES = [(architecture, "mix", shield) for architecture in ARCHITECTURES for shield in ("shield_off", "shield_on")]


@pytest.fixture(scope="module", params=[*CASES, ("rosetta", "multi", "shield_off")], ids="-".join)
def case(request):
    """The gradients by the names that the authors' tensors have."""
    architecture, name, shield = request.param
    model = authors.model(architecture).train()
    model(**authors.packed_batch(architecture, name), shield_shared_expert=shield == "shield_on").loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    return architecture, name, shield, revert_state_dict(model.config, gradients)


def test_gradients(case):
    architecture, name, shield, gradients = case
    prefix = f"{name}.grad.{shield}."
    results = {k.removeprefix(prefix): v for k, v in authors.results(architecture).items() if k.startswith(prefix)}
    if architecture == "rosetta" and name == "mix":
        assert results  # the others have norms only, where shielding changes nothing
    for key, expected in results.items():
        atol = GRADIENTS * expected.abs().max().item()
        torch.testing.assert_close(
            gradients[key], expected, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_norms_of_all_gradients(case):
    architecture, name, shield, gradients = case
    norms = authors.losses()[architecture]["gradient_norms"][f"{name}.{shield}"]
    trained = {key for key in gradients if not key.startswith("vit.") or ".linear_fc2." in key and "blocks" not in key}
    assert trained == set(norms)
    for key, norm in norms.items():
        # Biases before a GroupNorm have no gradient but for rounding errors.
        assert gradients[key].norm().item() == pytest.approx(norm, rel=GRADIENTS, abs=1e-6), key


def test_shielding_changes_the_shared_experts_gradient():
    norms = authors.losses()["rosetta"]["gradient_norms"]
    key = "model.layers.0.mlp.shared_mlp.down_proj.weight"
    off, on = norms["mix.shield_off"][key], norms["mix.shield_on"][key]
    assert abs(off - on) > 10 * GRADIENTS * off  # or the cases above could not tell them apart
