"""Speed, share of the peak and time left, by a clock that the tests move on."""

import time
from types import SimpleNamespace

import pytest
from tiny_training import training_logs

from trainer import training_flops
from trainer.figures import throughput
from trainer.figures.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_figures_of_an_interval(clock):
    flops = {"num_tokens_text": 6.0, "num_tokens_vae": 4.0, "attention_pairs": 1.0}
    speed = Throughput(flops, peak=1000.0, first_step=10, last_step=30)
    clock.now += 2
    with speed.paused():
        clock.now += 3
    counts = {"num_tokens_text": 100, "num_tokens_vae": 50, "num_text_targets": 99, "attention_pairs": 200}
    figures = speed.read(12, counts)
    assert figures["tokens_per_second"] == pytest.approx(150 / 2)
    assert figures["mfu"] == pytest.approx((6 * 100 + 4 * 50 + 200) / 2 / 1000)
    assert figures["time_left"] == pytest.approx(18 * 5 / 2)  # pauses are part of it
    clock.now += 1
    figures = speed.read(14, counts)
    assert figures["tokens_per_second"] == pytest.approx(150)
    assert figures["time_left"] == pytest.approx(16 * 6 / 4)


def test_without_a_known_peak_there_is_no_share_of_it(clock):
    speed = Throughput({"num_tokens_text": 6.0}, peak=None, first_step=0, last_step=2)
    clock.now += 1
    assert speed.read(1, {"num_tokens_text": 1}).keys() == {"tokens_per_second", "time_left"}


def test_a_run_logs_them(tiny_model, records, trainer_of, monkeypatch):
    monkeypatch.setattr("trainer.rosetta_trainer.peak_flops", lambda device: 1e12)
    model = tiny_model()
    trainer = trainer_of(model, records(16), max_steps=4, logging_steps=2, gradient_accumulation_steps=2)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    first, last = (log for log in trainer.state.log_history if "loss" in log)
    assert 12 * 16 / seconds < first["tokens_per_second"]
    assert last["time_left"] == 0 and 0 < first["time_left"] < seconds
    counts = {name: first.get(name, 0) for name in training_flops(model)} | {"attention_pairs": 16 * 12**2}
    flops = sum(each * counts[unit] for unit, each in training_flops(model).items())
    assert first["mfu"] == pytest.approx(flops * first["tokens_per_second"] / (12 * 16) / 1e12)
    assert "attention_pairs" not in first


def test_samples_and_tokens_of_each_type(tiny_model, records, trainer_of):
    trainer = trainer_of(tiny_model(), records(12), max_steps=1, per_device_train_batch_size=12)
    trainer.train()
    (log,) = training_logs(trainer)
    assert (log["num_samples"], log["num_samples_text"], log["num_samples_vae"]) == (12, 12, 4)
    assert (log["num_tokens_text"], log["num_tokens_vit"], log["num_tokens_vae"]) == (12 * 12 - 4 * 4, 0, 4 * 4)


def test_gradient_norm_is_that_of_the_global_batch(tiny_model, records, trainer_of):
    norms = []
    for micro_batches in (1, 4):
        trainer = trainer_of(
            tiny_model(router_aux_loss_coef=0.0),
            records(16, noisy=True),
            max_steps=2,
            per_device_train_batch_size=8 // micro_batches,
            gradient_accumulation_steps=micro_batches,
            max_grad_norm=0.1,
        )
        trainer.train()
        norms.append([log["grad_norm"] for log in training_logs(trainer)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert min(norms[0]) > 0.2  # before clipping
