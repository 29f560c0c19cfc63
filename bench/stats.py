"""95% intervals by the bootstrap; a CircularEval group is one observation: its rows depend on each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrecal.core.errors import BenchError

RESAMPLES = 5000
# Resampled sets held in memory at once; a thousand of MMB's largest split take about 14 MB.
BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A percentile interval of a mean."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much one subject's mean lies above another's, on the same questions."""

    mean: float
    interval: Interval
    n: int


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, confidence: float = 0.95) -> Interval:
    """The percentile bootstrap interval of the mean of `values`; equal arguments give equal figures.

    Values that are all alike resample to themselves: the interval is then that one value, which says that
    the bootstrap cannot tell more, not that the score is certain.

    Args:
        values: one for each independent question, 0 to 1.

    Raises:
        BenchError: no values.
    """
    # Imported here: scipy.stats takes about a second, which every other command would pay.
    from scipy import stats

    if len(values) == 0:
        raise BenchError("there is nothing to resample", where="bootstrap")
    sample = np.asarray(values, dtype=np.float64)
    if sample.min() == sample.max():
        return Interval(low=float(sample[0]), high=float(sample[0]))
    result = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(low=float(low), high=float(high))


def paired_difference(one: Mapping[str, float], other: Mapping[str, float], *, seed: int = 0) -> Difference:
    """The mean of `one` minus `other`, question by question, with its interval.

    Pairing takes out what makes questions hard for both, so it sees smaller differences than two intervals
    side by side do.

    Args:
        one: question -> score, 0 to 1.
        other: the same questions.

    Raises:
        BenchError: the questions differ.
    """
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise BenchError(
            f"{len(odd)} questions are not in both results (the first: '{odd[0]}')",
            where="paired difference",
            fix="Compare runs on the same test set",
        )
    differences = [one[name] - other[name] for name in sorted(one)]
    interval = bootstrap_interval(differences, seed=seed)
    return Difference(mean=float(np.mean(differences)), interval=interval, n=len(differences))
