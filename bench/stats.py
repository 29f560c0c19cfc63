"""95% intervals by the bootstrap over clusters: questions about one image are drawn together or not at all.

    value of each question -> sums and sizes of clusters -> resampled means -> percentiles

A CircularEval group is one question here, as its score is one value. Where few questions differ, the plain
bootstrap is sure of what it has not seen: values that are all alike would resample to themselves. So two
clusters of each extreme are added before drawing, as Agresti and Coull do for one proportion and Agresti and
Min for a paired difference (z^2 / 2 = 1.92 of each at 95%).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrecal.core.errors import BenchError

RESAMPLES = 5000
EXTREMES = 2
# Counts held in memory at once, 8 bytes each.
BATCH_COUNTS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A percentile interval of a mean."""

    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The interval of the mean of `values`, which lie from 0 to 1; equal arguments give equal figures.

    Args:
        values: one for each question.
        clusters: the cluster of each value; None: each value is a cluster of its own.
        weights: of each value, where the score is a mean of means; None: all alike.
        seed: of the draws.
        confidence: of the interval.

    Raises:
        BenchError: no values.
    """
    means_R = resampled_means(values, clusters=clusters, weights=weights, bounds=(0.0, 1.0), seed=seed)
    return interval_of(means_R, float(np.average(values, weights=weights)), confidence=confidence)


def resampled_means(
    values: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    bounds: tuple[float, float],
    seed: int = 0,
) -> np.ndarray:
    """Means over questions of `RESAMPLES` sets, each of as many clusters as there are, drawn at random.

    Only how often each kind of cluster (by sum and size) is drawn matters, and those counts are multinomial:
    the same bootstrap as drawing clusters one by one, in a time that does not grow with their number.

    Args:
        bounds: the least and the largest value that could have been.

    Raises:
        BenchError: no values.
    """
    if len(values) == 0:
        raise BenchError("there is nothing to resample", where="bootstrap")
    sums_C, sizes_C = cluster_sums(values, clusters, weights)
    # An added cluster is as large as a mean one.
    size = float(sizes_C.mean())
    added = np.repeat(np.array([[bound * size, size] for bound in bounds]), EXTREMES, axis=0)
    kinds_K2, counts_K = np.unique(
        # Sums in different orders differ in their last bits.
        np.concatenate((np.stack((sums_C, sizes_C), axis=1), added)).round(9),
        axis=0,
        return_counts=True,
    )
    total = int(counts_K.sum())
    rng = np.random.default_rng(seed)
    rows = max(1, BATCH_COUNTS // len(kinds_K2))
    means = []
    for start in range(0, RESAMPLES, rows):
        drawn_RK = rng.multinomial(total, counts_K / total, size=min(rows, RESAMPLES - start))
        means.append((drawn_RK @ kinds_K2[:, 0]) / (drawn_RK @ kinds_K2[:, 1]))
    return np.concatenate(means)


def interval_of(means_R: np.ndarray, mean: float, *, confidence: float = 0.95) -> Interval:
    """The percentiles of resampled means, and the mean itself in any case."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means_R, (tail, 100 - tail))
    return Interval(low=min(float(low), mean), high=max(float(high), mean))


def cluster_sums(
    values: Sequence[float], clusters: Sequence[str] | None, weights: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of the values of each cluster, and the sum of their weights."""
    values_Q = np.asarray(values, dtype=np.float64)
    weights_Q = np.ones_like(values_Q) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, given in (("clusters", clusters), ("weights", weights)):
        if given is not None and len(given) != len(values_Q):
            raise BenchError(f"{len(given)} {name} for {len(values_Q)} values", where="bootstrap")
    if clusters is None:
        return values_Q * weights_Q, weights_Q
    place: dict[str, int] = {}
    of_Q = np.fromiter((place.setdefault(name, len(place)) for name in clusters), np.int64, len(clusters))
    return np.bincount(of_Q, weights=values_Q * weights_Q), np.bincount(of_Q, weights=weights_Q)


def clusters_for(names: Sequence[str], clusters: Mapping[str, str] | None) -> list[str] | None:
    """The cluster of each question by its name; a question that has none is alone."""
    if not clusters:
        return None
    return [f"cluster {clusters[name]}" if name in clusters else f"question {name}" for name in names]


def group_weights(groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Weights of questions under which their mean is the mean of the groups' means (BLINK's headline figure).

    Args:
        groups: question -> the groups that it is in.

    Returns: question -> its weight; they average 1.
    """
    sizes: dict[str, int] = {}
    for names in groups.values():
        for name in names:
            sizes[name] = sizes.get(name, 0) + 1
    scale = len(groups) / len(sizes) if sizes else 1.0
    return {question: scale * sum(1 / sizes[name] for name in names) for question, names in groups.items()}
