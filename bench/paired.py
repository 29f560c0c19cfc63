"""Two subjects on the same questions: difference, interval, exact McNemar, and what the set could have shown.

                other right   other wrong
one right            a             b          McNemar asks whether b and c come from a fair coin:
one wrong            c             d          questions that both get alike say nothing of who is better
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.stats import Interval, clusters_for, interval_of, resampled_means
from genrecal.core.errors import BenchError

ALPHA = 0.05  # two-sided, as of the 95% intervals beside it
POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Table2x2:
    """How often which of two subjects was right; of questions that are right or wrong alone."""

    both: int
    only_one: int
    only_other: int
    neither: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much one subject's mean lies above another's, on the same questions."""

    mean: float
    interval: Interval  # 95%
    n: int
    clusters: int  # what was resampled: images, or questions where none share one
    agreement: float  # share of questions with the same score
    table: Table2x2 | None  # None where a question can be partly right
    mcnemar_p: float | None  # exact, two-sided, questions taken as independent; None as above
    smallest_shown: float  # a true difference that the set would show with power 0.8 at alpha 0.05
    left_out: int = 0  # questions that one of the two has no score for


def paired_difference(
    one: Mapping[str, float],
    other: Mapping[str, float],
    *,
    clusters: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Difference:
    """The mean of `one` minus `other`, question by question, with its interval.

    Pairing takes out what makes questions hard for both, so it sees smaller differences than two intervals
    side by side do.

    Args:
        one: question -> score, 0 to 1.
        other: the same questions.
        clusters: question -> what it shares with others; one that is not named is alone.
        weights: question -> its weight, where a score is a mean of means; None: all alike.

    Raises:
        BenchError: the questions differ, or there are none.
    """
    difference, _ = difference_and_draws(one, other, clusters=clusters, weights=weights, seed=seed)
    return difference


def difference_and_draws(
    one: Mapping[str, float],
    other: Mapping[str, float],
    *,
    clusters: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    left_out: int = 0,
) -> tuple[Difference, np.ndarray]:
    """`paired_difference`, and the resampled means that its interval is taken from."""
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise BenchError(
            f"{len(odd)} questions are not in both results (the first: '{odd[0]}')",
            where="paired difference",
            fix="Compare runs on the same test set",
        )
    names = sorted(one)
    differences = [one[name] - other[name] for name in names]
    of_names = clusters_for(names, clusters)
    of_weights = [weights[name] for name in names] if weights else None
    means_R = resampled_means(
        differences, clusters=of_names, weights=of_weights, bounds=(-1.0, 1.0), seed=seed
    )
    mean = float(np.average(differences, weights=of_weights))
    table = table_of([one[name] for name in names], [other[name] for name in names])
    difference = Difference(
        mean=mean,
        interval=interval_of(means_R, mean),
        n=len(names),
        clusters=len(set(of_names)) if of_names else len(names),
        agreement=sum(value == 0 for value in differences) / len(names),
        table=table,
        mcnemar_p=mcnemar(table.only_one, table.only_other) if table else None,
        smallest_shown=smallest_shown(float(means_R.std())),
        left_out=left_out,
    )
    return difference, means_R


def scored_by_both(
    one: Mapping[str, float], other: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float], int]:
    """The questions that both have a score for, and how many only one of them has (its judge failed)."""
    shared = one.keys() & other.keys()
    left_out = len(one.keys() | other.keys()) - len(shared)
    return {name: one[name] for name in shared}, {name: other[name] for name in shared}, left_out


def table_of(one: Sequence[float], other: Sequence[float]) -> Table2x2 | None:
    """Counts of right and wrong; None where a score is neither."""
    if any(value not in (0.0, 1.0) for values in (one, other) for value in values):
        return None
    cells = [0, 0, 0, 0]
    for first, second in zip(one, other, strict=True):
        cells[2 * (first == 0.0) + (second == 0.0)] += 1
    return Table2x2(both=cells[0], only_one=cells[1], only_other=cells[2], neither=cells[3])


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact two-sided p-value of McNemar's test; 1 where the two never differ."""
    # Imported here: scipy.stats takes about a second, which every other command would pay.
    from scipy import stats

    if only_one + only_other == 0:
        return 1.0
    return float(stats.binomtest(only_one, only_one + only_other, 0.5).pvalue)


def smallest_shown(standard_error: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference whose interval would exclude 0 in a share `power` of repetitions.

    The estimate is close to normal with this error, so it must lie z(1 - alpha/2) errors from 0 for the
    interval to exclude 0, and does so in a share `power` of repetitions if the truth lies another z(power)
    errors further out: 1.96 + 0.84 = 2.80 errors. The error is that of these two subjects on this set: two
    that agree more would show less.
    """
    from statistics import NormalDist

    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * standard_error
