"""The bootstrap against what is known without it; simulations: intervals hold the truth as often as said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import bench.stats
from bench.stats import bootstrap_interval, clusters_for, group_weights, interval_of, resampled_means
from genrecal.core.errors import BenchError


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = [1.0] * 300 + [0.0] * 700
    interval = bootstrap_interval(values)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert interval.low == pytest.approx(0.3 - half, abs=0.004)
    assert interval.high == pytest.approx(0.3 + half, abs=0.004)


def test_counting_kinds_of_clusters_is_scipys_bootstrap_of_clusters():
    rng = np.random.default_rng(0)
    sizes_C = rng.integers(1, 6, 400)
    clusters = [str(number) for number, size in enumerate(sizes_C) for _ in range(size)]
    hard_C = rng.random(400)
    values = [float(rng.random() < hard_C[int(name)]) for name in clusters]
    sums_C = np.bincount([int(name) for name in clusters], weights=values)
    # The clusters of each extreme, which are added before drawing.
    size = sizes_C.mean()
    sums_C, sizes_C = np.append(sums_C, [0, 0, size, size]), np.append(sizes_C, [size] * 4)
    theirs = stats.bootstrap(
        (sums_C, sizes_C),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = bootstrap_interval(values, clusters=clusters)
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


def test_clusters_widen_the_interval_by_what_their_questions_have_in_common():
    rng = np.random.default_rng(2)
    right_C = rng.random(300) < 0.5
    values = [float(right) for right in right_C for _ in range(4)]  # four questions that always agree
    clusters = [str(number) for number in range(300) for _ in range(4)]
    alone, together = bootstrap_interval(values), bootstrap_interval(values, clusters=clusters)
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2.0, abs=0.1)


def test_equal_seeds_equal_figures():
    values = list(np.random.default_rng(0).random(50))
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_memory_is_bounded_and_batches_change_no_draw(monkeypatch):
    values = list(np.random.default_rng(0).random(50))
    whole = resampled_means(values, bounds=(0, 1))
    monkeypatch.setattr(bench.stats, "BATCH_COUNTS", 5000)
    np.testing.assert_array_equal(resampled_means(values, bounds=(0, 1)), whole)


@pytest.mark.parametrize("n", [1, 9, 400])
def test_values_that_are_all_alike_are_not_certain(n):
    right, wrong = bootstrap_interval([1.0] * n), bootstrap_interval([0.0] * n)
    assert right.high == 1.0 and wrong.low == 0.0
    # As far down as the exact bound of a proportion that was never seen to fail, or a little further.
    exact = stats.binomtest(n, n).proportion_ci(0.95).low
    assert right.low == pytest.approx(exact, abs=0.006 if n == 400 else 0.2)
    assert right.low < 1 - 1 / n or n == 1


def test_there_must_be_values_and_a_cluster_for_each():
    with pytest.raises(BenchError, match="nothing to resample"):
        bootstrap_interval([])
    with pytest.raises(BenchError, match="1 clusters for 2 values"):
        bootstrap_interval([0.0, 1.0], clusters=["a"])


def test_a_question_without_a_cluster_is_alone():
    assert clusters_for(["a", "b"], None) is None
    names = clusters_for(["a", "b", "c", "1"], {"a": "1", "c": "1"})
    assert names is not None and names[0] == names[2] and len(set(names)) == 3


def test_weights_make_the_mean_of_the_groups_means():
    groups = {"a": ["x"], "b": ["x"], "c": ["x", "y"], "d": ["y"], "e": ["z"]}
    values = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": 1.0}
    weights = group_weights(groups)
    assert np.mean(list(weights.values())) == pytest.approx(1.0)
    mean = np.average(list(values.values()), weights=[weights[name] for name in values])
    assert mean == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # One group of a thousand and one of ten count alike: the small one decides the width.
    groups = {str(number): ["large" if number < 1000 else "small"] for number in range(1010)}
    hits = [float(number % 2) for number in range(1010)]
    weights = group_weights(groups)
    wide = bootstrap_interval(hits, weights=[weights[name] for name in groups])
    assert wide.high - wide.low > 4 * (bootstrap_interval(hits).high - bootstrap_interval(hits).low)


def share_covered(draw, truth, *, bounds, repetitions=400):
    held = 0
    for number in range(repetitions):
        values, clusters = draw()
        means_R = resampled_means(values, clusters=clusters, bounds=bounds, seed=number)
        interval = interval_of(means_R, float(np.mean(values)))
        held += interval.low <= truth <= interval.high
    return held / repetitions


# Four hundred repetitions of a true 95% give 92.8% to 97.2% in 95 of 100 cases; small sets may hold more.
LEAST = 0.925


@pytest.mark.parametrize(("n", "share"), [(10, 0.5), (30, 0.9), (100, 0.97), (500, 0.7)])
def test_intervals_of_scores_cover(n, share, monkeypatch):
    monkeypatch.setattr(bench.stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(n)
    covered = share_covered(lambda: ((rng.random(n) < share).astype(float), None), share, bounds=(0.0, 1.0))
    assert covered >= LEAST


@pytest.mark.parametrize("count", [10, 60])
def test_intervals_of_clustered_scores_cover(count, monkeypatch):
    """Where questions of a cluster correlate by one half, and an interval over questions holds too seldom."""
    monkeypatch.setattr(bench.stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(count)

    def draw():
        hard_C, sizes_C = rng.beta(0.7, 0.3, count), rng.integers(1, 9, count)
        of_Q = np.repeat(np.arange(count), sizes_C)
        return (rng.random(len(of_Q)) < hard_C[of_Q]).astype(float), [str(number) for number in of_Q]

    assert share_covered(draw, 0.7, bounds=(0.0, 1.0)) >= LEAST
    assert share_covered(lambda: (draw()[0], None), 0.7, bounds=(0.0, 1.0)) < LEAST


@pytest.mark.parametrize(("n", "gains", "losses"), [(50, 0.05, 0.05), (200, 0.01, 0.04), (1000, 0.002, 0.01)])
def test_intervals_of_differences_cover(n, gains, losses, monkeypatch):
    monkeypatch.setattr(bench.stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(n)
    shares = [gains, losses, 1 - gains - losses]
    covered = share_covered(
        lambda: (rng.choice([1.0, -1.0, 0.0], n, p=shares), None), gains - losses, bounds=(-1.0, 1.0)
    )
    assert covered >= LEAST
