"""A token type is routed to its own pool and nothing else; equation (2) holds; routers stay in fp32."""

import pytest
import torch

from modeling_rosetta import experts_interface_rosetta
from modeling_rosetta.losses_rosetta import routing_losses
from tests.conftest import sample, tiny_model


def without_loss(batch: dict) -> dict:
    return {k: v for k, v in batch.items() if k not in ("labels", "velocity_labels")}


@pytest.mark.parametrize(
    ("kinds", "reached"), [("t", {"text"}), ("u", {"vit"}), ("g", {"vae"}), ("tg", {"text", "vae"})]
)
def test_gradients_reach_only_the_pools_of_the_types_that_are_there(rosetta, kinds, reached):
    output = rosetta(**without_loss(sample(kinds)), output_hidden_states=True)
    output.hidden_states[-1].square().sum().backward()
    for layer in rosetta.model.layers:
        for name, pool in layer.mlp.pools.items():
            gradients = [p.grad for p in pool.parameters() if p.grad is not None]
            assert any(g.abs().max() > 0 for g in gradients) == (name in reached)
        assert layer.mlp.shared_experts["global"].up_proj.weight.grad.abs().max() > 0


def test_equation_2(rosetta):
    """The shared expert, plus the two best experts of the token's own pool by renormalised probability."""
    batch = sample("tug")
    ffn = rosetta.model.layers[0].mlp
    captured = {}
    ffn.register_forward_hook(lambda _, args, output: captured.update(x=args[0], out=output[0]))
    with torch.no_grad():
        rosetta(**without_loss(batch))
        names = [t["expert_pool"] for t in rosetta.config.token_types]
        for x, h, token_type in zip(captured["x"], captured["out"], batch["token_type_ids"][0].tolist(), strict=True):
            pool = ffn.pools[names[token_type]]
            probabilities = (pool.router.weight @ x).softmax(-1)
            best = probabilities.argsort(descending=True)[:2]
            expected = ffn.shared_experts["global"](x)
            for expert in best:
                gate, up = (pool.experts.gate_up_proj[expert] @ x).chunk(2)
                output = pool.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                expected = expected + probabilities[expert] / probabilities[best].sum() * output
            torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)


def test_experts_implementations_agree(model):
    batch = without_loss(sample("tugt"))
    outputs = []
    for implementation in ("grouped_mm", "eager"):
        model.set_experts_implementation({"": implementation})
        assert model.config._experts_implementation == implementation
        with torch.no_grad():
            outputs.append(model(**batch))
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs[0].velocity, outputs[1].velocity, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 40])
def test_experts_of_a_few_and_many_tokens_are_the_reference(rosetta, num_tokens, dtype):
    experts = rosetta.model.layers[0].mlp.pools["vae"].experts.to(dtype)
    hidden_states, weights = torch.randn(num_tokens, 32, dtype=dtype), torch.rand(num_tokens, 2, dtype=dtype)
    index = torch.randint(1, experts.num_experts, (num_tokens, 2))  # an expert without tokens, and some twice a token
    given = hidden_states.clone()
    outputs = []
    for implementation in ("grouped_mm", "eager"):
        rosetta.set_experts_implementation({"": implementation})
        outputs.append(experts(hidden_states, index, weights))
    assert outputs[0].dtype == dtype and torch.equal(hidden_states, given)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)


def test_experts_that_train_run_as_transformers_has_them(rosetta, monkeypatch):
    """Also without gradients, as reentrant checkpointing does first."""
    ran = []
    monkeypatch.setattr(
        experts_interface_rosetta, "grouped_mm_experts_forward", lambda experts, *args: ran.append(experts) or args[0]
    )
    experts = rosetta.model.layers[0].mlp.pools["vae"].experts
    arguments = torch.randn(3, 32), torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2)
    for training, grad, runs in ((True, False, 1), (True, True, 1), (False, True, 1), (False, False, 0)):
        ran.clear()
        with torch.set_grad_enabled(grad):
            experts.train(training)(*arguments)
        assert len(ran) == runs, (training, grad)


def test_routers_compute_in_fp32_under_autocast_and_in_bf16(rosetta):
    batch = without_loss(sample("tug"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = rosetta(**batch, output_router_logits=True).router_logits
    assert {pool.dtype for layer in logits for pool in layer.values()} == {torch.float32}
    router = tiny_model().to(torch.bfloat16).model.layers[0].mlp.pools["text"].router
    x = torch.randn(5, 32).to(torch.bfloat16)
    assert torch.equal(router(x)[0], torch.nn.functional.linear(x.float(), router.weight.float()))


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_experts_compute_in_bf16_under_autocast(implementation):
    """Which leaves fused weights in fp32 by itself."""
    model = tiny_model()
    model.set_experts_implementation({"": implementation})
    experts = model.model.layers[0].mlp.pools["vae"].experts
    hidden_states = torch.randn(9, 32).bfloat16()
    index, weights = torch.randint(experts.num_experts, (9, 2)), torch.rand(9, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = experts(hidden_states, index, weights)
    output.sum().backward()
    assert {parameter.grad.dtype for parameter in experts.parameters()} == {torch.float32}
    assert torch.equal(output, experts.bfloat16()(hidden_states, index, weights))


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("kinds", ["t", "tu", "tg"])
def test_a_batch_without_some_type_still_touches_its_parameters(model, kinds, implementation):
    """Every rank must take part in reducing every gradient."""
    model.set_experts_implementation({"": implementation})
    model.train()
    model(**sample(kinds)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_balance_loss_is_one_a_layer_when_all_is_even_and_ignores_padding():
    even = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0]]).repeat(4, 1)
    padding = torch.tensor([[9.0, 5.0, 0.0]]).repeat(7, 1)
    layer = {"text": torch.cat([even, padding]), "vae": torch.zeros(0, 6)}
    real = {"text": torch.arange(19) < 12, "vae": torch.ones(0, dtype=torch.bool)}
    loss, capacity = routing_losses((layer, layer), real, {"shared": ["text", "vae"]}, top_k=2)
    torch.testing.assert_close(loss, torch.tensor(2.0))
    assert capacity["text"] == 1 and capacity["vae"].isnan()
    everything = {"text": torch.ones(19, dtype=torch.bool), "vae": real["vae"]}
    assert routing_losses((layer, layer), everything, {"shared": ["text", "vae"]}, top_k=2)[0] > 2.01


def test_balance_loss_averages_the_pools_of_a_stream_and_sums_the_streams():
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    real = {"a": torch.ones(12, dtype=torch.bool), "b": torch.ones(12, dtype=torch.bool)}
    layer = {"a": logits, "b": logits}
    together, _ = routing_losses((layer,), real, {"shared": ["a", "b"]}, top_k=2)
    apart, _ = routing_losses((layer,), real, {"und": ["a"], "gen": ["b"]}, top_k=2)
    torch.testing.assert_close(apart, 2 * together)
