"""What the plan predicts, against what was measured; from the committed configs and results alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.plan.cases import CASES, RESULTS
from benchmarks.plan.predict import compare, predict, table
from genrecal.core.files import read_json

WITHIN = 0.15
# A CPU without bf16 arithmetic has no one speed for it: there the table shows the time, and nothing holds it.
TIMED = [name for name in CASES if CASES[name]["precision"] == "fp32"]


@pytest.mark.parametrize("name", CASES)
def test_within(name: str) -> None:
    measured = read_json(RESULTS / f"{name}.json")
    found = compare(measured, predict(measured))
    held = ["held", "on_top", *(["seconds"] if name in TIMED else [])]
    for figure in held:
        assert found[f"{figure}_predicted"] == pytest.approx(found[f"{figure}_measured"], rel=WITHIN), figure


def test_mid_size_is_mid_size() -> None:
    found = predict(read_json(RESULTS / "mid-recalibrate.json"))
    assert found["parameters"] >= 100_000_000


@pytest.mark.full
def test_the_table_of_the_document() -> None:
    assert table() in (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
