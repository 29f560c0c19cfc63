"""The whole chain at the smallest size: what `make demo` does, in its order, with its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.model import EdgeModel
from genrecal.core.config import parse_config
from genrecal.core.errors import ConfigError
from genrecal.core.images import open_image
from genrecal.core.manifest import verify_manifest
from genrecal.demo.chain import SUBJECTS, run_demo
from genrecal.demo.settings import DemoConfig, load_demo_config

BRIEF = {"epochs": 0.2, "micro_batch": 8, "accumulation": 1, "lr_start": 1e-3, "lr_end": 1e-4}
SMALL_VISION = {"vision_hidden": 32, "vision_layers": 1, "vision_heads": 1}
SMALL = {"hidden": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate": 64, **SMALL_VISION}
TINY = {
    "ranks": 1,
    "test_questions": 12,
    "distill_images": 40,
    "teacher": {"shape": SMALL, "warm": {"steps": 3, "batch": 4}, "images": 60, "pretrain": BRIEF},
    "student": {"shape": SMALL, "warm": {"steps": 3, "batch": 4}, "images": 30, "pretrain": BRIEF},
    "recalibrate": BRIEF,
    "distill": BRIEF,
    "finetune": BRIEF,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "out"
    run_demo(parse_config(TINY, DemoConfig, where="test"), seeds=1, output=output)
    return output


def test_every_subject_is_scored_on_every_set(demo: Path) -> None:
    results = json.loads((demo / "seed-0" / "results.json").read_text())
    assert list(results["subjects"]) == list(SUBJECTS)
    for row in results["subjects"].values():
        assert set(row["scores"]) == {"mmb", "mmmu", "mmvet"}
        assert all(0 <= score["score"] <= 1 and score["n"] == 12 for score in row["scores"].values())
        assert row["weights_bytes"] > 0 and row["peak_memory_bytes"] > 0
    int8, checkpoint = results["subjects"]["genrecal-int8"], results["subjects"]["genrecal"]
    assert int8["weights_bytes"] < checkpoint["weights_bytes"]
    assert len(results["samples"]) == 10
    assert {row["stage"] for row in results["reading"]} == {"recalibrate", "distill"}


def test_the_baseline_takes_the_same_student_updates(demo: Path) -> None:
    curves = json.loads((demo / "seed-0" / "results.json").read_text())["curves"]
    student = [row for row in curves["genrecal"] if row["stage"] != "recalibrate"]
    assert len(student) == len(curves["sft"]) == len(curves["sft-teacher"])


def test_the_build_is_whole_and_answers(demo: Path) -> None:
    build = demo / "seed-0" / "builds" / "int8"
    assert verify_manifest(build, kind="build")["provenance"]["method"] == "genrecal"
    image = next((demo / "seed-0" / "data" / "test").rglob("*.png"))
    assert EdgeModel.open(build).answer((open_image(image), "What is written?"), max_new_tokens=3).token_ids


def test_the_report_stands_alone(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    for label in SUBJECTS.values():
        assert label.split(" ")[0] in page


def test_a_second_call_does_nothing_again(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "seed-0" / "results.json").stat().st_mtime_ns
    run_demo(parse_config(TINY, DemoConfig, where="test"), seeds=1, output=demo)
    assert (demo / "seed-0" / "results.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(demo: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        run_demo(load_demo_config(None), seeds=1, output=demo)
