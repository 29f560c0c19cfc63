"""The Pareto frontier of several subjects: who is beaten by nobody in accuracy and cost at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.perf import Perf
from bench.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a subject is weighed against accuracy by; less is better."""

    title: str
    unit: str
    of: Callable[[Perf], float | None]


COSTS: dict[str, Cost] = {
    "latency": Cost(title="time of an answer (p50)", unit="ms", of=lambda perf: 1e3 * perf.total_s_p50),
    "energy": Cost(
        title="energy of an answer", unit="J", of=lambda perf: perf.energy.gross_j if perf.energy else None
    ),
    "size": Cost(
        title="weights on disk",
        unit="MB",
        of=lambda perf: perf.weights_bytes / 1e6 if perf.weights_bytes else None,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A subject on one plot."""

    name: str
    cost: float
    accuracy: float  # mean over the benchmarks that all have, 0 to 1
    best: bool  # on the frontier


def mean_scores(reports: Sequence[Report]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Each subject's mean over the benchmarks in which all have a whole score, and which those are."""
    of_each = [
        {name: one.score.score for name, one in report.results.items() if one.score.score is not None}
        for report in reports
    ]
    first = of_each[0] if of_each else {}
    shared = tuple(name for name in first if all(name in scores for scores in of_each))
    if not shared:
        return {}, ()
    means = {
        report.name: float(np.mean([scores[name] for name in shared]))
        for report, scores in zip(reports, of_each, strict=True)
    }
    return means, shared


def frontier(reports: Sequence[Report], cost: Cost, means: Mapping[str, float]) -> list[Point]:
    """The subjects whose cost is known, by rising cost; figures of different devices are not on one plot.

    Args:
        reports: subjects.
        cost: what accuracy is weighed against.
        means: subject -> accuracy.
    """
    known = []
    for report in reports:
        value = cost.of(report.perf) if report.perf is not None else None
        if value is not None and report.name in means:
            known.append((report.name, value, means[report.name]))
    return [
        Point(
            name=name,
            cost=value,
            accuracy=accuracy,
            best=not any(
                other <= value and better >= accuracy and (other < value or better > accuracy)
                for _, other, better in known
            ),
        )
        for name, value, accuracy in sorted(known, key=lambda one: (one[1], -one[2]))
    ]
