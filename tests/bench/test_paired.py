"""Paired differences: exact McNemar against known values, power by simulation, and what is not compared."""

from __future__ import annotations

import numpy as np
import pytest

import bench.stats
from bench.paired import mcnemar, paired_difference, scored_by_both, smallest_shown
from bench.stats import bootstrap_interval
from genrecal.core.errors import BenchError


def named(values):
    return {str(number): float(value) for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("only_one", "only_other", "p"),
    [
        (0, 0, 1.0),
        (0, 5, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (4, 4, 1.0),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (59, 6, None),  # far out: below what floats of a naive sum would lose
    ],
)
def test_mcnemar_by_hand(only_one, only_other, p):
    found = mcnemar(only_one, only_other)
    assert found == mcnemar(only_other, only_one)
    assert found == pytest.approx(p) if p is not None else 0 < found < 1e-10


def test_the_table_is_counted_and_the_difference_is_its_margins():
    one, other = named([1, 1, 1, 0, 0, 1]), named([1, 0, 0, 1, 0, 0])
    difference = paired_difference(one, other)
    table = difference.table
    assert (table.both, table.only_one, table.only_other, table.neither) == (1, 3, 1, 1)
    assert difference.mean == pytest.approx((3 - 1) / 6)
    assert difference.agreement == pytest.approx(2 / 6)
    assert difference.mcnemar_p == pytest.approx(2 * (1 + 4) / 2**4)


def test_pairing_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(1)
    one = named(rng.random(400))
    other = {name: value - 0.02 for name, value in one.items()}
    difference = paired_difference(one, other)
    assert difference.mean == pytest.approx(0.02) and difference.interval.low > 0
    assert bootstrap_interval(list(one.values())).low < np.mean(list(other.values()))


def test_partial_credit_has_an_interval_and_no_mcnemar():
    difference = paired_difference(named([1, 0.5, 0]), named([1, 0, 0]))
    assert difference.table is None and difference.mcnemar_p is None
    assert difference.interval.low < difference.mean < difference.interval.high


def test_two_that_never_differ_are_not_shown_to_be_equal():
    difference = paired_difference(named([1] * 100), named([1] * 100))
    assert difference.mean == 0 and difference.mcnemar_p == 1.0 and difference.agreement == 1.0
    # Up to 3.6% of questions may differ and show no difference in 100 (the exact bound at 97.5%).
    assert difference.interval.low == pytest.approx(-0.038, abs=0.006)
    assert difference.interval.high == pytest.approx(0.038, abs=0.006)


def test_one_group_tells_next_to_nothing():
    one, other = named([1] * 50), named([0] * 50)
    difference = paired_difference(one, other, clusters=dict.fromkeys(one, "the image"))
    assert difference.mean == 1.0 and difference.clusters == 1
    assert difference.interval.low < 0


def test_other_questions_are_not_compared():
    with pytest.raises(BenchError, match="1 questions are not in both"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0})


def test_questions_that_one_has_no_score_for_are_counted():
    one, other, left_out = scored_by_both({"a": 1.0, "b": 0.0}, {"a": 0.5, "c": 1.0, "d": 1.0})
    assert (one, other, left_out) == ({"a": 1.0}, {"a": 0.5}, 3)


def test_the_smallest_difference_is_shown_with_the_power_that_is_claimed(monkeypatch):
    """Of repetitions with a true difference of that size, four of five have an interval without 0."""
    monkeypatch.setattr(bench.stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    n, discordant = 900, 0.12
    truth = smallest_shown(np.sqrt(discordant / n))
    assert truth == pytest.approx(2.8016 * np.sqrt(discordant / n), rel=1e-4)
    shares = [(discordant + truth) / 2, (discordant - truth) / 2, 1 - discordant]
    shown, claims = 0, []
    for seed in range(400):
        values = rng.choice([1.0, -1.0, 0.0], n, p=shares)
        difference = paired_difference(named(values > 0), named(values < 0), seed=seed)
        shown += difference.interval.low > 0
        claims.append(difference.smallest_shown)
    assert shown / 400 == pytest.approx(0.8, abs=0.06)
    assert np.median(claims) == pytest.approx(truth, rel=0.05)
