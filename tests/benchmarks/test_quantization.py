"""The committed measurement holds what is promised of int8 and int4, and the computed sizes are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quantization import MODELS, NAME, RESULTS, ROWS, computed_sizes
from genrecal.core.files import read_json

STUDENT = "student"
DOCUMENT = Path(__file__).parents[2] / "docs" / "quantization.md"
WAY_OF_KERNEL = {"int4, gptq": "int4, nearest"}  # the same kernel


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return read_json(RESULTS / NAME)


def test_answers(results: dict[str, Any]) -> None:
    found = results["agreement"][STUDENT]
    assert found["fp32"]["forced_top1"] == 1.0 and found["fp32"]["tokens"] > 300
    assert found["int8"]["forced_top1"] >= 0.98
    assert found["int4, gptq"]["forced_top1"] >= 0.95
    # More than rounding.
    assert (
        found["int4, gptq"]["relative_logits_error"] < 0.9 * found["int4, nearest"]["relative_logits_error"]
    )


def test_sizes_of_the_language_model(results: dict[str, Any]) -> None:
    full = results["sizes"]["Qwen2-VL-2B, computed"]
    assert full["int8"] <= 0.55 and full["int4"] <= 0.35
    assert results["sizes"][STUDENT]["int8"]["language_over_fp16"] <= 0.55

    assert results["sizes"]["strong"]["int4, gptq"]["language_over_fp16"] <= 0.35


def test_scores_are_within_a_point_of_the_float_builds(results: dict[str, Any]) -> None:
    """Paired by question; int4 is shown beside it, with the same interval."""
    assert results["scores"]["questions"] >= 1000
    for precision in ("int8", "int4"):
        for name, found in results["scores"][precision].items():
            low, high = found["interval_95"]
            assert low <= found["difference"] <= high and abs(found["difference"]) < 0.01, (precision, name)
    assert all(found["interval_95"][0] >= -0.01 for found in results["scores"]["int8"].values())


def test_the_document_shows_the_committed_figures(results: dict[str, Any]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for way, found in results["agreement"][STUDENT].items():
        if way == "fp32":
            continue
        kernel = WAY_OF_KERNEL.get(way, way)
        speeds = [results["speed"][f"{rows} rows"][kernel]["times_fp32"] for rows in ROWS]
        cells = [
            f"{found['forced_top1']:.1%}",
            f"{results['agreement']['strong'][way]['forced_top1']:.1%}",
            f"{found['relative_logits_error']:.1%}",
            *(f"{speed:.2f}" if speed < 1 else f"{speed:.1f}" for speed in speeds),
            f"{results['sizes'][STUDENT][way]['language_over_fp16']:.3f}",
        ]
        assert f"| {' | '.join(cells)} |" in text, way
    for precision in ("int8", "int4"):
        for found in results["scores"][precision].values():
            low, high = (100 * end for end in found["interval_95"])
            assert f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]" in text


def test_computed_sizes_are_those_of_a_build(results: dict[str, Any]) -> None:
    computed, measured = computed_sizes(MODELS / STUDENT / "student"), results["sizes"][STUDENT]
    assert computed["int8"] == pytest.approx(measured["int8"]["language_over_fp16"], rel=0.02)
    assert computed["int4"] == pytest.approx(measured["int4, gptq"]["language_over_fp16"], rel=0.02)


def test_the_kernel_that_was_taken_is_fast_and_the_closest(results: dict[str, Any]) -> None:
    one = results["speed"]["1 rows"]
    assert one["int8"]["times_fp32"] > 1 and one["int4, nearest"]["times_fp32"] > one["int8"]["times_fp32"]
    assert one["int8"]["ms"] < 0.1 * one["int8, float activations"]["ms"]
    found = results["agreement"][STUDENT]
    for way in ("int8, dynamic per channel", "int8, dynamic per channel, 7 bits"):
        assert found["int8"]["relative_logits_error"] < found[way]["relative_logits_error"]
