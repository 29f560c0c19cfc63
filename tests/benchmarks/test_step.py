"""The bars of a step, on the committed measurement; and how its ratios are made."""

from __future__ import annotations

import pytest

from benchmarks.plan.cases import ACCUMULATION
from benchmarks.step import RESULTS, ROUNDS, ratios
from genrecal.core.files import read_json

# A step over what no engine can spare it.
MOST = 1.15
# What a cache saves, of the teacher's own time.
WITHIN = 0.15


def test_the_measurement_keeps_the_bars() -> None:
    record = read_json(RESULTS / "step.json")
    assert record["parameters"] >= 100_000_000
    assert all(len(seconds) == ROUNDS for seconds in record["seconds"].values())
    found = ratios(record["seconds"])
    assert found == pytest.approx(record["ratios"])
    assert found["step_over_parts"] <= MOST
    assert found["saved_over_teacher"] == pytest.approx(1.0, rel=WITHIN)


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is three times slower in one round changes nothing."""
    parts = {"teacher": 2.0, "student": 2.0, "recalibrator": 1.0}
    one = parts | {"live": 5.5 * ACCUMULATION, "cached": 3.5 * ACCUMULATION}
    seconds = {name: [value, 3 * value, value] for name, value in one.items()}
    found = ratios(seconds)
    assert found["step_over_parts"] == pytest.approx(1.1)
    assert found["saved_over_teacher"] == pytest.approx(1.0)
