"""What a benchmark's score is a mean of: which questions are drawn together, and how much each one weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.image_clusters import image_clusters
from bench.stats import Interval, bootstrap_interval, clusters_for, group_weights
from bench.task import Row
from bench.types import Score


def clusters_of(rows: Sequence[Row]) -> dict[str, str]:
    """The cluster of each question that shares an image with another."""
    return image_clusters((row.question_id, list(row.images.values())) for row in first_rows(rows))


def weights_of(rows: Sequence[Row], score: Score) -> dict[str, float]:
    """The weight of each question, where the score is a mean of groups' means; else none."""
    kind = score.details.get("mean_of")
    if kind is None:
        return {}
    scored = [row for row in first_rows(rows) if row.question_id in score.hits]
    return group_weights({row.question_id: row.groups.get(kind, ()) for row in scored})


def score_interval(
    score: Score, clusters: Mapping[str, str], weights: Mapping[str, float], *, seed: int = 0
) -> Interval | None:
    """The 95% interval of a score; None where no question has one."""
    if not score.hits:
        return None
    names = list(score.hits)
    return bootstrap_interval(
        [score.hits[name] for name in names],
        clusters=clusters_for(names, clusters),
        weights=[weights[name] for name in names] if weights else None,
        seed=seed,
    )


def first_rows(rows: Sequence[Row]) -> list[Row]:
    """One row of each question: of a CircularEval group the first, whose images its rotations share."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.question_id, row)
    return list(found.values())
