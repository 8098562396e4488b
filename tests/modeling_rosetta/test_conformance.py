"""What transformers holds every model to, where no other file here does: for text, understanding and drawing."""

import copy
import re
from pathlib import Path

import pytest
import torch

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, RosettaModel
from tests.conftest import TINY, sample, tiny_model
from tests.modeling_rosetta.test_generation import left_padded, prompt


KINDS = ["t", "tut", "tgt"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


def close(actual, expected, atol: float = 3e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("kinds", KINDS)
def test_a_row_of_a_batch_is_the_row_alone_and_a_run_the_run_before(model, kinds):
    rows = [prompt(kinds, seed) for seed in (1, 2, 3)]
    together = model(**left_padded(rows))
    assert torch.equal(together.logits, model(**left_padded(rows)).logits)
    for row, logits in zip(rows, together.logits, strict=True):
        close(logits, model(**row).logits[0])
    if "g" in kinds:
        close(together.velocity, torch.cat([model(**row).velocity for row in rows]))


@torch.no_grad()
@pytest.mark.parametrize("kinds", KINDS)
def test_a_tuple_holds_what_the_output_class_holds(rosetta, kinds):
    for model in (rosetta, rosetta.model):
        output = model(**prompt(kinds), output_router_logits=True, output_hidden_states=True)
        as_tuple = model(**prompt(kinds), output_router_logits=True, output_hidden_states=True, return_dict=False)
        assert len(as_tuple) == len(output.to_tuple()) > 2
        hidden_states = as_tuple[[*output].index("hidden_states")]
        assert torch.equal(as_tuple[0], output[0]) and torch.equal(hidden_states[1], output.hidden_states[1])


@torch.no_grad()
@pytest.mark.parametrize("kinds", KINDS)
def test_eager_attention_is_sdpa_and_may_be_set_at_any_time(model, kinds):
    expected = model(**prompt(kinds)).logits
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        close(model(**prompt(kinds)).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_reads_and_draws(rosetta, dtype):
    batch, expected = prompt("tugt"), rosetta(**prompt("tugt"))
    output = rosetta.to(dtype)(**batch)
    for name in ("logits", "velocity"):
        assert getattr(output, name).dtype == dtype
        error = (getattr(output, name).float() - getattr(expected, name)).norm() / getattr(expected, name).norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]


@torch.no_grad()
def test_a_mask_of_four_dimensions_and_chosen_logits(model):
    ids = prompt("tt")["input_ids"]
    expected = model(ids).logits
    causal = torch.ones(9, 9).tril().bool()[None, None]
    close(model(ids, attention_mask=causal).logits, expected)
    assert not torch.allclose(model(ids, attention_mask=causal & ~torch.eye(9).bool().roll(1, 0)).logits, expected)
    close(model(ids, logits_to_keep=3).logits, expected[:, -3:])
    close(model(ids, logits_to_keep=torch.tensor([2, 5])).logits, expected[:, [2, 5]])


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings(tied, tmp_path):
    model, ids = tiny_model(tie_word_embeddings=tied), prompt("t")["input_ids"]
    expected = model(ids).logits
    model.resize_token_embeddings(130)
    assert model.config.vocab_size == 130 and model(ids).logits.shape[-1] == 130
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    close(model(ids).logits[..., :120], expected)
    model.save_pretrained(tmp_path)
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path)
    close(loaded(ids).logits, model(ids).logits)
    model.resize_token_embeddings(112)
    close(model(ids).logits, expected[..., :112])


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
@torch.no_grad()
def test_scaled_positions(rosetta, scaling):
    """Linear scaling divides each position; dynamic scaling leaves those that fit as they are."""
    config = RosettaConfig(**TINY, max_position_embeddings=64, rope_parameters={"rope_theta": 1e6, **scaling})
    model = RosettaForCausalLMAndImageGeneration(config).eval()
    model.load_state_dict(rosetta.state_dict())
    ids, positions = prompt("tt")["input_ids"], torch.arange(9)[None]
    logits, plain = model(ids).logits, rosetta(ids).logits
    if scaling["rope_type"] == "linear":
        spread = model(ids, position_ids=4 * positions, attention_mask=torch.ones_like(ids)).logits
        close(spread, plain)
    assert torch.allclose(logits, plain, atol=1e-5) == (scaling["rope_type"] == "dynamic")
    assert model(ids.repeat(1, 12)).logits.isfinite().all()


def test_what_a_checkpoint_lacks_is_initialised_and_what_does_not_fit_is_refused(rosetta, tmp_path):
    rosetta.save_pretrained(tmp_path)
    base, loading = RosettaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(torch.equal(value, rosetta.model.state_dict()[key]) for key, value in base.state_dict().items())
    base.save_pretrained(tmp_path / "base")
    whole, loading = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert loading["missing_keys"] and all(key.startswith("latent_out") for key in loading["missing_keys"])
    assert all(p.isfinite().all() and p.device.type == "cpu" for p in whole.parameters())
    changed = {**TINY, "intermediate_size": 32}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path, config=RosettaConfig(**changed))
    other = RosettaForCausalLMAndImageGeneration.from_pretrained(
        tmp_path, config=RosettaConfig(**changed), ignore_mismatched_sizes=True
    )
    assert torch.equal(other.model.norm.weight, rosetta.model.norm.weight)


@pytest.mark.parametrize("kinds", KINDS)
def test_every_parameter_that_takes_part_gets_a_gradient(model, kinds):
    model.train()
    model.enable_input_require_grads()
    model(**sample(kinds)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    names = {name for name, p in model.named_parameters() if p.grad.any()}
    for name in {"t": ["embed_tokens"], "tut": ["visual.patch_embed"], "tgt": ["latent_in", "latent_out"]}[kinds]:
        assert any(name in trained for trained in names)


@pytest.mark.parametrize("kinds", KINDS)
def test_a_few_steps_learn_one_batch_by_heart(kinds):
    model, batch = tiny_model(initializer_range=0.02).train(), sample(kinds)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        output = model(**batch)
        losses.append(output.text_loss.item() if kinds != "tgt" else output.flow_loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < 0.4 * losses[0], losses
    if kinds == "t":
        generated = model.eval().generate(batch["input_ids"][:, :2], max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert torch.equal(generated, batch["input_ids"][:, :4])


@torch.no_grad()
def test_a_copy_and_the_meta_device(rosetta):
    close(copy.deepcopy(rosetta)(**prompt("tut")).logits, rosetta(**prompt("tut")).logits, atol=0)
    with torch.device("meta"):
        empty = RosettaForCausalLMAndImageGeneration(rosetta.config)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in rosetta.named_parameters()}
    assert RosettaForCausalLMAndImageGeneration.main_input_name == "input_ids"


def test_every_test_that_the_document_names_is_there():
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCUMENT.read_text()))
    assert len(named) > 20
    folders = Path(__file__).parents[1].rglob
    for file, name in named:
        (path,) = folders(file)
        assert f"def {name}(" in path.read_text(), (file, name)
