"""The non-inferiority gate: is a build shown to be no worse than its baseline, but for an allowed drop?

    difference = build - baseline, paired      -D = the allowed drop, as a negative difference

        no worse      -D |--[=====]--          the 95% interval lies above -D
        worse     [=====]| -D                  the interval lies below -D, at a level for all that is asked
        cannot tell   [==|==]                  -D lies inside

docs/bench.md has the rule with its figures and why it is this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.differences import compare, points, smallest
from bench.paired import ALPHA, smallest_shown
from bench.report import Report
from bench.stats import Interval, interval_of
from genrecal.core.errors import BenchError

NO_WORSE, WORSE, CANNOT_TELL = "no worse", "worse", "cannot tell"
EXIT_CODES = {NO_WORSE: 0, WORSE: 1, CANNOT_TELL: 2}
TOGETHER = "all together"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One benchmark, or all together, at the gate; differences are shares, not points."""

    title: str
    mean: float  # build - baseline
    interval: Interval  # 95%; its lower bound decides on "no worse"
    high_for_worse: float  # the upper bound that decides on "worse": 95% for all parts at once
    allowed_drop: float
    smallest_shown: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the gate says."""

    build: str
    baseline: str
    parts: Mapping[str, Part]
    together: Part | None  # None with one benchmark alone
    verdict: str

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def asked(self) -> tuple[Part, ...]:
        """Everything that a verdict was given on."""
        return (*self.parts.values(), *((self.together,) if self.together else ()))


def judge_drop(build: Report, baseline: Report, limits: Limits, *, seed: int = 0) -> Gate:
    """Put a build through the gate.

    Raises:
        BenchError: as `compare`, or a limit is for a benchmark that the build was not asked.
    """
    unknown = sorted(limits.of_sets.keys() - build.results.keys())
    if unknown:
        raise BenchError(
            f"a limit for '{unknown[0]}', which the build was not asked",
            where="--max-drop",
            fix=f"It was asked {', '.join(sorted(build.results))}",
        )
    compared = compare(build, baseline, seed=seed)
    several = len(compared.differences) > 1
    asked = len(compared.differences) + several
    parts = {
        name: _part(
            compared.titles[name],
            difference.mean,
            compared.draws[name],
            allowed=limits.of_sets.get(name, limits.every),
            asked=asked,
        )
        for name, difference in compared.differences.items()
    }
    together = None
    if several:
        together = _part(
            TOGETHER,
            float(np.mean([difference.mean for difference in compared.differences.values()])),
            # Each benchmark has draws of its own seed, and the same weight, as in a table's mean.
            np.mean(list(compared.draws.values()), axis=0),
            # The mean of what each may lose: the same limit, where none has one of its own.
            allowed=float(np.mean([part.allowed_drop for part in parts.values()])),
            asked=asked,
        )
    verdicts = [part.verdict for part in (*parts.values(), together) if part is not None]
    verdict = NO_WORSE if set(verdicts) == {NO_WORSE} else WORSE if WORSE in verdicts else CANNOT_TELL
    return Gate(build=build.name, baseline=baseline.name, parts=parts, together=together, verdict=verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Allowed drops, as shares."""

    every: float
    of_sets: Mapping[str, float]  # benchmark -> its own


def read_limits(texts: Sequence[str]) -> Limits | None:
    """Allowed drops from `--max-drop 1.0 --max-drop mmvet=3`, in points; None where none is given.

    Raises:
        BenchError: no number of points from 0 to 100, or none for all.
    """
    every: float | None = None
    of_sets: dict[str, float] = {}
    for text in texts:
        name, separator, number = text.rpartition("=")
        try:
            points = float(number)
        except ValueError:
            points = math.nan
        if not 0 <= points <= 100:  # NaN neither
            raise BenchError(
                f"'{text}' is no number of points from 0 to 100",
                where="--max-drop",
                fix="Write --max-drop 1.0, or --max-drop mmvet=3 for one benchmark",
            )
        if separator:
            of_sets[name] = points / 100
        else:
            every = points / 100
    if every is None and of_sets:
        raise BenchError(
            "limits for single benchmarks alone", where="--max-drop", fix="Give --max-drop 1.0 too"
        )
    return None if every is None else Limits(every=every, of_sets=of_sets)


def gate_lines(gate: Gate) -> list[str]:
    """What is printed: a line for each verdict with its figures in points, the outcome last."""
    lines = [f"gate: {gate.build} against {gate.baseline}, difference in points with its 95% interval"]
    for part in gate.asked:
        line = (
            f"  {part.title}: {points(part.mean)} [{points(part.interval.low)}, {points(part.interval.high)}]"
            f", allowed {points(-part.allowed_drop)}: {part.verdict}"
        )
        if part.verdict == CANNOT_TELL:
            line += f" (the smallest difference that this set shows: {smallest(part.smallest_shown)})"
        lines.append(line)
    lines.append(f"gate: {gate.verdict} (exit code {gate.exit_code})")
    return lines


def gate_json(gate: Gate) -> dict[str, Any]:
    """The gate as JSON values; shares, not points."""
    return {**asdict(gate), "exit_code": gate.exit_code}


def _part(title: str, mean: float, draws_R: np.ndarray, *, allowed: float, asked: int) -> Part:
    interval = interval_of(draws_R, mean)
    # Bonferroni: with many benchmarks one would fall below its limit by chance alone. To pass, each part must
    # do so on its own, which needs no correction.
    high = interval_of(draws_R, mean, confidence=1 - ALPHA / asked).high
    # Sums of shares carry rounding: a bound that is exactly the limit counts as within.
    slack = 1e-9
    if interval.low >= -allowed - slack:
        verdict = NO_WORSE
    elif high < -allowed - slack:
        verdict = WORSE
    else:
        verdict = CANNOT_TELL
    return Part(
        title=title,
        mean=mean,
        interval=interval,
        high_for_worse=high,
        allowed_drop=allowed,
        smallest_shown=smallest_shown(float(draws_R.std())),
        verdict=verdict,
    )
