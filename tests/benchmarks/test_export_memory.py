"""The committed measurement holds the bar, and the document shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.export_memory import BAR_EXTRA_BYTES, BAR_FACTOR, NAME, RESULTS
from genrecal.core.files import read_json

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_an_export_stays_below_the_bar(precision: str) -> None:
    found = read_json(RESULTS / NAME)[precision]
    assert found["parameters"] > 2.2e9 and found["fp16_bytes"] == 2 * found["parameters"]
    assert found["peak_bytes"] <= BAR_FACTOR * found["fp16_bytes"] + BAR_EXTRA_BYTES
    shown = f"{found['peak_bytes'] / 1e9:.2f} GB | {found['graphs_bytes'] / 1e9:.2f} GB"
    assert shown in DOCUMENT.read_text(encoding="utf-8")
