"""Rows of cells as figures: mean and spread over seeds, and differences with their intervals.

    grades of a row        [seeds, questions], 0 to 1
    difference of two rows [seeds, questions], equal seeds and questions side by side

A difference's interval comes from a bootstrap over both: seeds are drawn, questions are drawn, the mean of
what they meet in is taken, 5,000 times. So it says what other runs on other questions would give. With five
seeds it is a rough figure, and of twenty rows one is expected to differ by chance alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.stats import RESAMPLES, Interval
from genrecal.core.errors import BenchError
from genrecal.core.files import read_json

SETS = ("mmb", "mmmu", "mmvet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All finished cells of one setting and variant."""

    name: str  # setting/variant
    cells: dict[int, dict[str, Any]]  # seed -> the cell's record

    @property
    def seeds(self) -> list[int]:
        return sorted(self.cells)

    def grades(self, seeds: Sequence[int], sets: Sequence[str] = SETS) -> np.ndarray:
        """0 to 1, [seeds, questions of all sets in a row]."""
        return np.array(
            [
                [int(grade) / 100 for name in sets for grade in self.cells[seed]["grades"][name].split()]
                for seed in seeds
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much one row's mean lies above another's."""

    mean: float
    interval: Interval
    seeds: int


def read_row(results: Path, name: str) -> Row:
    """The row's cells that are there; none is no error."""
    paths = sorted((results / name).glob("*.json"), key=lambda path: int(path.stem))
    return Row(name=name, cells={int(path.stem): read_json(path) for path in paths})


def mean_and_spread(row: Row, sets: Sequence[str] = SETS) -> tuple[float, float | None]:
    """Over seeds, of the mean over questions: mean, and sample standard deviation (None with one seed)."""
    means_S = row.grades(row.seeds, sets).mean(1)
    return float(means_S.mean()), float(means_S.std(ddof=1)) if len(means_S) > 1 else None


def difference(one: Row, other: Row, sets: Sequence[str] = SETS, *, seed: int = 0) -> Difference:
    """The mean of `one` minus `other` over the seeds that both have, with its 95% interval.

    Args:
        one: a row.
        other: another; where it is the untrained student, whose only seed stands for all.
        sets: whose questions count, or "first" or "later" for held-out tokens.
        seed: of the bootstrap.

    Raises:
        BenchError: they have no seed in common, or were asked other questions.
    """
    seeds = one.seeds if _untrained(other) else other.seeds if _untrained(one) else None
    if seeds is None:
        seeds = sorted(set(one.seeds) & set(other.seeds))
    if not seeds:
        raise BenchError(f"{one.name} and {other.name} have no seed in common", where="difference")
    asked = {
        str(sorted(record["questions_sha256"].items()))
        for row in (one, other)
        for record in row.cells.values()
    }
    if len(asked) > 1:
        raise BenchError(f"{one.name} and {other.name} were asked other questions", where="difference")
    delta_SQ = _of(one, seeds, sets) - _of(other, seeds, sets)
    return Difference(
        mean=float(delta_SQ.mean()), interval=resampled(delta_SQ, seed=seed), seeds=len(delta_SQ)
    )


def resampled(delta_SQ: np.ndarray, *, seed: int) -> Interval:
    """The 95% percentile interval of the mean over drawn seeds and drawn questions."""
    rng = np.random.default_rng(seed)
    seeds, questions = delta_SQ.shape
    # How often each seed and each question is drawn; the mean is a product of the two and the differences.
    drawn_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    drawn_RQ = rng.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES) / questions
    means_R = ((drawn_RS @ delta_SQ) * drawn_RQ).sum(1)
    low, high = np.percentile(means_R, (2.5, 97.5))
    return Interval(low=float(low), high=float(high))


def differs(found: Difference) -> bool:
    """Whether zero lies outside the interval."""
    return found.interval.low > 0 or found.interval.high < 0


def _untrained(row: Row) -> bool:
    return all(not record["stages"] for record in row.cells.values())


def _of(row: Row, seeds: Sequence[int], sets: Sequence[str]) -> np.ndarray:
    if _untrained(row):
        return np.repeat(row.grades(row.seeds[:1], sets), len(seeds), axis=0)
    return row.grades(seeds, sets)
