"""The bootstrap against what is known without it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.stats import bootstrap_interval, paired_difference
from genrecal.core.errors import BenchError


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = [1.0] * 300 + [0.0] * 700
    interval = bootstrap_interval(values)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert interval.low == pytest.approx(0.3 - half, abs=0.004)
    assert interval.high == pytest.approx(0.3 + half, abs=0.004)


def test_equal_seeds_equal_figures():
    values = list(np.random.default_rng(0).random(50))
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_values_that_are_all_alike_and_none_at_all():
    assert (bootstrap_interval([1.0] * 9).low, bootstrap_interval([1.0]).high) == (1.0, 1.0)
    with pytest.raises(BenchError):
        bootstrap_interval([])


def test_pairing_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(1)
    hard = rng.random(400)
    one = {str(number): value for number, value in enumerate(hard)}
    other = {name: value - 0.01 for name, value in one.items()}
    difference = paired_difference(one, other)
    assert difference.mean == pytest.approx(0.01) and difference.interval.low > 0
    assert bootstrap_interval(list(one.values())).low < np.mean(list(other.values()))


def test_other_questions_are_not_compared():
    with pytest.raises(BenchError, match="1 questions are not in both"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0})
