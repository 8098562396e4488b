"""Samples are mixed at the given ratios, each the same whenever it is asked for."""

from collections import Counter

import pytest

from examples.miniature.mixture import Mixture


TASKS = {name: lambda choose, name=name: (name, choose.random()) for name in ("LM", "MMU", "T2I")}


def test_shares_follow_the_ratios():
    mixture = Mixture(TASKS, {"T2I": 0.6, "MMU": 0.25, "LM": 0.15}, num_samples=2000)
    counts = Counter(mixture[i][0] for i in range(len(mixture)))
    assert counts["T2I"] == pytest.approx(1200, abs=70) and counts["LM"] == pytest.approx(300, abs=50)


def test_a_sample_is_the_same_each_time_and_depends_on_the_seed():
    first, again, other = (Mixture(TASKS, {"LM": 0.5, "MMU": 0.5}, 50, seed) for seed in (0, 0, 1))
    assert [first[i] for i in range(50)] == [again[i] for i in reversed(range(50))][::-1]
    assert [first[i] for i in range(50)] != [other[i] for i in range(50)]


@pytest.mark.parametrize("ratios", [{"LM": 0.5}, {"LM": 0.5, "audio": 0.5}])
def test_bad_ratios_are_named(ratios):
    with pytest.raises(ValueError, match="`ratios` must give shares"):
        Mixture(TASKS, ratios, 10)
