"""What a mount leaves alone, what unmounting gives back, and token types of a user's own."""

import itertools

import pytest
import torch

from modeling_rosetta import (
    RosettaConfig,
    RosettaForCausalLMAndImageGeneration,
    mount,
    own_modules,
    resize_experts,
    unmount,
)
from modeling_rosetta.modeling_rosetta import RosettaVisionModel
from tests.conftest import CONFIGS, TINY, sample, tiny_model
from trainer import train_token_types


AUDIO = {
    "name": "audio",
    "embeds_from": "audio_features",
    "expert_pool": "audio",
    "attention_stream": "shared",
    "shared_expert": "global",
    "feature_size": 5,
}
SPEECH = {**AUDIO, "is_generated": True}


def text_model(architecture: str = "rosetta") -> RosettaForCausalLMAndImageGeneration:
    """As upcycled: it reads text, and is no longer random about its sizes."""
    full = CONFIGS[architecture](**TINY)
    text = full.token_types[0]
    sizes = {k: v for k, v in TINY.items() if k not in ("vision_config", "latent_channels", "latent_hidden_size")}
    pools = {text["expert_pool"]: full.expert_pools[text["expert_pool"]]}
    torch.manual_seed(0)
    return RosettaForCausalLMAndImageGeneration(RosettaConfig(**sizes, token_types=[text], expert_pools=pools)).eval()


def mount_named(model, name: str, architecture: str = "rosetta", entry: dict | None = None):
    full = CONFIGS[architecture](**TINY)
    foundation = full.token_types[0]
    if name == "audio":
        entry = {**(entry or AUDIO), **{k: foundation[k] for k in ("attention_stream", "shared_expert")}}
        return mount(model, entry, num_experts=4)
    entry = next(t for t in full.token_types if t["name"] == name)
    pool = entry["expert_pool"]
    number = None if pool in model.config.pools else full.expert_pools[pool]
    if name == "vit":
        torch.manual_seed(3)
        return mount(model, entry, number, vision_tower=RosettaVisionModel._from_config(full.vision_config))
    return mount(model, entry, number, latent_channels=8, latent_hidden_size=64, flow_loss_coef=10.0)


def snapshot(model) -> tuple[dict, dict]:
    return {k: v.clone() for k, v in model.state_dict().items()}, model.config.to_dict()


def assert_same(model, state: dict, config: dict):
    assert model.config.to_dict() == config
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[k], state[k]) for k in state)


def ours(batch: dict, model) -> dict:
    """A batch whose token types are numbered as in this model, without targets."""
    names = [t["name"] for t in model.config.token_types]
    numbers = torch.tensor([names.index(name) if name in names else -1 for name in ("text", "vit", "vae")])
    batch = {k: v for k, v in batch.items() if "labels" not in k}
    return {**batch, "token_type_ids": numbers[batch["token_type_ids"]]}


def audio_batch(model, velocity: bool = False, clips: tuple[int, ...] = (4, 3)) -> dict:
    """Text, a clip, text, a clip, ... with text as targets."""
    index = next(i for i, t in enumerate(model.config.token_types) if t["name"] == "audio")
    types = torch.cat([torch.tensor([0, 0, 0] + [index] * n) for n in clips] + [torch.tensor([0, 0])])[None]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 110, types.shape, generator=generator).masked_fill(types > 0, 119)
    batch = {"input_ids": ids, "token_type_ids": types, "labels": ids.masked_fill(types > 0, -100)}
    batch["audio_features"] = torch.randn(sum(clips), 5, generator=generator)
    if velocity:
        batch["audio_timesteps"] = torch.rand(len(clips), generator=generator).repeat_interleave(torch.tensor(clips))
        batch["audio_velocity_labels"] = torch.randn(sum(clips), 5, generator=generator)
    return batch


@torch.no_grad()
def train_one_step(model, batch: dict, name: str):
    train_token_types(model, name).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.enable_grad():
        model(**batch).loss.backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("entry", [AUDIO, SPEECH], ids=["read", "generated"])
@pytest.mark.parametrize("order", list(itertools.permutations(["vit", "vae", "audio"])), ids="-".join)
def test_training_what_is_mounted_changes_nothing_else_in_any_order(order, entry):
    model = text_model()
    batches = {"text": sample("tt"), "vit": sample("tut"), "vae": sample("tgt"), "audio": None}
    mounted = ["text"]
    for name in order:
        before = {kind: model(**ours(batches[kind], model)) for kind in mounted if kind != "audio"}
        frozen = snapshot(model)[0]
        mount_named(model, name, entry=entry)
        if name == "audio":
            batch = audio_batch(model, "is_generated" in entry)
        else:
            batch = {**batches[name], "token_type_ids": ours(batches[name], model)["token_type_ids"]}
        new = {k: v.clone() for k, v in model.state_dict().items() if k not in frozen}
        train_one_step(model, batch, name)
        after = model.state_dict()
        assert all(torch.equal(after[k], v) for k, v in frozen.items())
        assert any(not torch.equal(after[k], v) for k, v in new.items())
        for kind, output in before.items():
            now = model(**ours(batches[kind], model))
            assert torch.equal(now.logits, output.logits)
            assert kind != "vae" or torch.equal(now.velocity, output.velocity)
        mounted.append(name)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("order", list(itertools.permutations(["vit", "vae", "audio"])), ids="-".join)
def test_unmounting_gives_back_the_earlier_model(order, architecture):
    model, states = text_model(architecture), []
    for name in order:
        states.append(snapshot(model))
        mount_named(model, name, architecture, entry=SPEECH)
    for name, (state, config) in zip(reversed(order), reversed(states), strict=True):
        unmount(model, name)
        assert_same(model, state, config)


def test_later_types_move_up_when_an_earlier_one_is_unmounted():
    model = mount_named(mount_named(text_model(), "audio"), "vit")
    batch = sample("tut")
    before = model(**ours(batch, model)).logits
    unmount(model, "audio")
    assert [t["name"] for t in model.config.token_types] == ["text", "vit"]
    assert torch.equal(model(**ours(batch, model)).logits, before)


def test_own_modules_are_what_a_mount_adds():
    model = mount_named(text_model(), "vit")
    before = set(model.state_dict())
    mount_named(model, "audio", entry=SPEECH)
    prefixes = tuple(f"{path}." for path in own_modules(model.config, "audio"))
    assert set(model.state_dict()) - before == {k for k in model.state_dict() if k.startswith(prefixes)}
    with pytest.raises(ValueError, match="`names` must be among"):
        own_modules(model.config, "video")


@pytest.mark.parametrize("entry", [AUDIO, SPEECH], ids=["read", "generated"])
def test_a_mounted_type_is_saved_loaded_and_trained_whole(entry, tmp_path):
    model = mount_named(tiny_model(), "audio", entry=entry)
    model.save_pretrained(tmp_path)
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in loaded.named_parameters()]
    assert all(torch.equal(a, loaded.state_dict()[k]) for k, a in model.state_dict().items())
    batch = audio_batch(model, "is_generated" in entry)
    torch.testing.assert_close(model(**batch).loss, loaded(**batch).loss, rtol=0, atol=1e-5)
    for train_batch in (batch, sample("tugt")):  # also in a batch that has none of it
        model.train().zero_grad()
        model(**train_batch).loss.backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_fresh_mount_copies_nothing():
    model = mount(text_model(), {**SPEECH, "attention_stream": "own", "shared_expert": "own"}, 4, init_from=None)
    layer = model.model.layers[0]
    pool = layer.mlp.pools["audio"].experts.down_proj
    assert len(torch.cat([pool, layer.mlp.pools["text"].experts.down_proj]).unique(dim=0)) == 7
    assert abs(pool.std().item() - TINY["initializer_range"]) < 0.02
    assert not torch.equal(
        layer.self_attn.streams["own"].q_proj.weight, layer.self_attn.streams["shared"].q_proj.weight
    )
    assert model(**audio_batch(model)).logits is None


def test_features_reach_later_text_and_not_earlier():
    model = mount_named(text_model(), "audio")
    batch = {k: v for k, v in audio_batch(model).items() if k != "labels"}
    before = model(**batch).logits
    batch["audio_features"] = batch["audio_features"].clone()
    batch["audio_features"][-1] += 1
    changed = ((model(**batch).logits - before).abs() > 1e-4).any(-1)[0].tolist()
    assert changed == [False] * 12 + [True] * 3  # causal inside the clip as well


def test_the_tokens_of_a_generated_clip_attend_to_one_another_but_not_to_other_clips():
    model = mount_named(text_model(), "audio", entry=SPEECH)
    batch = {k: v for k, v in audio_batch(model, velocity=True).items() if "labels" not in k}
    before = model(**batch).feature_velocities["audio"]
    batch["audio_features"] = batch["audio_features"].clone()
    batch["audio_features"][-1] += 1
    changed = ((model(**batch).feature_velocities["audio"] - before).abs() > 1e-4).any(-1).tolist()
    assert changed == [False] * 4 + [True] * 3


def test_packed_clips_equal_clips_one_by_one():
    """Two samples that end and begin with a clip: side by side, they are still two clips."""
    model = mount_named(text_model(), "audio", entry=SPEECH)
    features = torch.randn(5, 5)
    types = torch.tensor([[0, 1, 1, 1, 1, 0]])
    packed = model(
        input_ids=torch.tensor([[7, 119, 119, 119, 119, 8]]),
        token_type_ids=types,
        sequence_ids=torch.tensor([[0, 0, 0, 1, 1, 1]]),
        audio_features=features[:4],
        audio_timesteps=torch.tensor([0.2, 0.2, 0.7, 0.7]),
    ).feature_velocities["audio"]
    for rows, ids, kinds, time in (
        (slice(0, 2), [7, 119, 119], [0, 1, 1], 0.2),
        (slice(2, 4), [119, 119, 8], [1, 1, 0], 0.7),
    ):
        alone = model(
            input_ids=torch.tensor([ids]),
            token_type_ids=torch.tensor([kinds]),
            audio_features=features[:4][rows],
            audio_timesteps=torch.full((2,), time),
        ).feature_velocities["audio"]
        torch.testing.assert_close(packed[rows], alone, rtol=0, atol=1e-5)


def test_the_losses_of_a_generated_type_add_up():
    model = mount_named(text_model(), "audio", entry=SPEECH)
    output = model(**audio_batch(model, velocity=True))
    config = model.config
    flow = output.feature_losses["audio"]
    torch.testing.assert_close(
        output.loss, output.text_loss + config.flow_loss_coef * flow + config.router_aux_loss_coef * output.aux_loss
    )
    batch = audio_batch(model, velocity=True)
    expected = (output.feature_velocities["audio"] - batch["audio_velocity_labels"]).square().mean()
    torch.testing.assert_close(flow, expected)
    doubled = model(**batch, num_feature_targets={"audio": 14}).feature_losses["audio"]
    torch.testing.assert_close(2 * doubled, flow)


def test_the_time_is_heard():
    model = mount_named(text_model(), "audio", entry=SPEECH)
    batch = audio_batch(model, velocity=True)
    other = {**batch, "audio_timesteps": 1 - batch["audio_timesteps"]}
    assert not torch.allclose(model(**batch).feature_velocities["audio"], model(**other).feature_velocities["audio"])


def test_generate_reads_features():
    model = mount_named(text_model(), "audio")
    batch = {k: v for k, v in audio_batch(model).items() if k != "labels"}
    ids = model.generate(**batch, max_new_tokens=4, do_sample=False)
    step = batch
    for _ in range(4):
        nxt = model(**step, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        step = {
            **step,
            "input_ids": torch.cat([step["input_ids"], nxt], 1),
            "token_type_ids": torch.cat([step["token_type_ids"], torch.zeros_like(nxt)], 1),
        }
    assert torch.equal(ids, step["input_ids"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"audio_features": torch.zeros(7, 4)}, "`audio_features` must have shape"),
        ({"audio_features": torch.zeros(6, 5)}, "`audio_features` gives 6 embeddings"),
        ({"audio_timesteps": torch.zeros(3)}, "`audio_timesteps` must have shape"),
        ({"audio_velocity_labels": torch.zeros(3, 5)}, "`audio_velocity_labels` of shape"),
    ],
)
def test_bad_features_are_named(change, named):
    model = mount_named(text_model(), "audio", entry=SPEECH)
    with pytest.raises(ValueError, match=named):
        model(**{**audio_batch(model), **change})


def test_resizing_keeps_experts_and_shrinking_undoes_growing():
    model = tiny_model()
    before, config = snapshot(model)
    pool = "model.layers.1.mlp.pools.vae"
    resize_experts(model, "vae", 10)
    assert model.config.expert_pools["vae"] == 10
    experts, router = model.get_submodule(pool).experts.down_proj, model.get_submodule(pool).router.weight
    old = before[f"{pool}.experts.down_proj"]
    assert torch.equal(experts, torch.cat([old, old[:4]])) and torch.equal(router[6:], router[:4])
    assert model(**sample("tgt")).loss.isfinite()
    resize_experts(model, "vae", 6)
    assert_same(model, before, config)
    resize_experts(model, "vae", 2)
    assert torch.equal(model.get_submodule(pool).experts.down_proj, old[:2])
    fresh = resize_experts(model, "vae", 4, fresh=True).get_submodule(pool).experts.down_proj
    assert torch.equal(fresh[:2], old[:2]) and len(fresh.unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"pool": "audio", "num_experts": 3}, "`pool` must be one of"),
        ({"pool": "vae", "num_experts": 1}, "`num_experts` must be an integer of at least"),
        ({"pool": "vae", "num_experts": "3"}, "`num_experts` must be an integer of at least"),
    ],
)
def test_bad_sizes_are_refused_before_any_change(arguments, named):
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=named):
        resize_experts(model, **arguments)
    assert_same(model, *before)


@pytest.mark.parametrize(
    ("entry", "arguments", "named"),
    [
        ({"name": "vit"}, {}, "mounted already"),
        ({"name": "keys"}, {}, "able to name a module"),
        ({"embeds_from": "audio"}, {}, "exactly the keys"),
        ({"feature_size": 0}, {}, "positive integer"),
        ({"is_generated": 1}, {}, "True or False"),
        ({"shared_expert": "new"}, {"init_from": "text"}, "no shared expert"),
        ({}, {"init_from": "video"}, "`init_from` must be one of"),
        ({}, {"num_experts": 1}, "fewer than"),
        ({}, {"num_experts": None}, "needs `num_experts`"),
        ({}, {"latent_channels": 3}, "`config_updates`"),
    ],
)
def test_bad_types_are_refused_before_any_change(entry, arguments, named):
    model = tiny_model()
    if "shared_expert" in entry:
        types = [{**t, "shared_expert": None} for t in model.config.token_types]
        model = tiny_model(token_types=types, expert_pools=model.config.expert_pools)
    before = snapshot(model)
    with pytest.raises(Exception, match=named):
        mount(model, {**AUDIO, **entry}, **{"num_experts": 4, **arguments})
    assert_same(model, *before)


def test_a_vocabulary_without_room_for_the_placeholder_is_refused():
    model = text_model()
    model.config.image_token_id = 120
    before = snapshot(model)
    with pytest.raises(ValueError, match="vocabulary of 120 is too small"):
        mount(model, AUDIO, 4)
    assert_same(model, *before)


@pytest.mark.parametrize(("name", "named"), [("text", "is the foundation"), ("video", "is not mounted")])
def test_what_cannot_be_unmounted_is_refused(name, named):
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=named):
        unmount(model, name)
    assert_same(model, *before)


def test_only_a_model_of_this_package_can_be_composed():
    with pytest.raises(ValueError, match="`model` must be"):
        mount(torch.nn.Linear(2, 2), AUDIO, 4)
