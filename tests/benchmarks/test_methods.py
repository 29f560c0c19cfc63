"""The comparison of methods: its statistics, its list of cells, one cell from end to end, its document."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from bench.run import digest
from bench.stats import bootstrap_interval
from bench.types import Query
from benchmarks.answers import asked
from benchmarks.cells import Cell, cells_of, is_done, made_with, run_cell, run_config, stage_steps
from benchmarks.compare import Row, difference, differs, mean_and_spread, read_row, resampled
from benchmarks.made import write_made
from benchmarks.methods import RESULTS, _work, app
from benchmarks.pairs import distill_set, draw_test_sets, model_folder, pretrain_set
from benchmarks.settings import DEFAULTS, Plan, load_plan
from benchmarks.table import all_tables, put_between_markers, suite_table
from genrecal.core.errors import BenchError, ConfigError
from genrecal.train.stages import METHODS, STAGES

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs" / "evidence.md"
SHORT = {"epochs": 0.2, "micro_batch": 8, "accumulation": 1, "lr_start": 1e-3, "lr_end": 1e-4}
ALIGNED = {"answer_input": "aligned"}
SMALL = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "key_value_heads": 1,
    "intermediate": 64,
    "vision_hidden": 32,
    "vision_layers": 1,
    "vision_heads": 1,
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load_plan()


def record(grades: list[int], *, trained: bool = True, asked: str = "a") -> dict[str, Any]:
    """A cell's record with these grades in hundredths, the same for each set."""
    text = " ".join(map(str, grades))
    return {
        "grades": dict.fromkeys(("mmb", "mmmu", "mmvet", "first", "later"), text),
        "stages": {"adapt": {"updates": 3}} if trained else {},
        "questions_sha256": {"mmb": asked},
        "student_updates": 3,
    }


def test_a_difference_pairs_seeds_and_questions() -> None:
    one = Row(
        name="s/one", cells={0: record([100, 100, 0, 50]), 1: record([100, 0, 0, 50]), 7: record([0] * 4)}
    )
    other = Row(name="s/other", cells={0: record([100, 0, 0, 50]), 1: record([0, 0, 0, 50])})
    found = difference(one, other)
    # Seed 7 is not in both. In each of the two others one question of four is gained.
    assert found.mean == pytest.approx(0.25) and found.seeds == 2
    assert found.interval.low <= 0.25 <= found.interval.high


def test_the_interval_is_wider_where_seeds_disagree() -> None:
    questions = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=400, p=[0.1, 0.7, 0.2])
    agree = np.tile(questions, (5, 1))
    shifts = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    narrow, wide = resampled(agree, seed=0), resampled(agree + shifts, seed=0)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_seeds_that_agree_leave_the_questions_own_interval() -> None:
    questions = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=400)
    found, plain = resampled(np.tile(questions, (5, 1)), seed=0), bootstrap_interval(questions.tolist())
    assert found.low == pytest.approx(plain.low, abs=0.01)
    assert found.high == pytest.approx(plain.high, abs=0.01)


def test_a_row_differs_only_where_zero_is_outside() -> None:
    same = Row(name="s/a", cells={seed: record([0, 100] * 50) for seed in range(5)})
    better = Row(name="s/b", cells={seed: record([100, 100] * 50) for seed in range(5)})
    noisy = Row(name="s/c", cells={seed: record([100, 0] * 50) for seed in range(5)})
    assert differs(difference(better, same))
    assert not differs(difference(noisy, same))


def test_the_untrained_student_stands_for_every_seed() -> None:
    before = Row(name="s/before", cells={0: record([0, 0, 100, 100], trained=False)})
    after = Row(name="s/after", cells={1: record([100, 0, 100, 100]), 2: record([100] * 4)})
    assert difference(after, before).mean == pytest.approx(0.375)
    assert mean_and_spread(before) == (0.5, None)


def test_other_questions_are_no_pair() -> None:
    one = Row(name="s/one", cells={0: record([0])})
    with pytest.raises(BenchError, match="other questions"):
        difference(one, Row(name="s/b", cells={0: record([0], asked="b")}))
    with pytest.raises(BenchError, match="no seed in common"):
        difference(one, Row(name="s/c", cells={1: record([0])}))


def test_a_suites_second_table_pairs_the_rows_that_it_names(plan: Plan, tmp_path: Path) -> None:
    for row, grades in (
        ("scarce/sft", [0, 0]),
        ("scarce/genrecal", [100, 0]),
        ("weak-teacher/genrecal", [100, 100]),
    ):
        (tmp_path / row).mkdir(parents=True)
        for seed in range(3):
            (tmp_path / row / f"{seed}.json").write_text(json.dumps(record(grades)))
    second = suite_table(plan, "teachers", tmp_path).split("\n\n")[1]
    title = plan.variants["genrecal"].title
    assert f"{title} minus {title} (weak-teacher)" in second and "-50.0 [" in second
    assert len(second.strip().splitlines()) == 3, "a pair that lacks a row has no line"


def test_questions_are_told_apart_by_words_and_by_pixels() -> None:
    image, other = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2))
    other.putpixel((1, 1), (0, 0, 1))
    queries = [
        Query(id="1", parts=parts)
        for parts in (("What?", image), ("What?", image.copy()), ("What?", other), ("Who?", image))
    ]
    same, again, pixel, words = (digest([asked(query)]) for query in queries)
    assert same == again and len({same, pixel, words}) == 3


def test_cells_come_seed_by_seed_and_once(plan: Plan) -> None:
    cells = cells_of(plan, ["main", "reading"], 5)
    assert len(cells) == len(set(cells))
    assert [one.seed for one in cells] == sorted(one.seed for one in cells)
    per_seed = {seed: {one.row for one in cells if one.seed == seed} for seed in range(5)}
    # The untrained student is scored once.
    assert per_seed[0] - per_seed[1] == {"scarce/baseline"}
    assert (
        per_seed[1]
        == per_seed[4]
        == {*plan.suites["main"].rows, *plan.suites["reading"].rows} - {"scarce/baseline"}
    )


def test_every_method_has_the_same_student_updates(plan: Plan) -> None:
    for name, variant in plan.variants.items():
        if variant.method is None:
            continue
        updates = {
            stage: stage_steps(plan, stage, variant.student_updates)[1]
            for stage in METHODS[variant.method].stages
        }
        student = sum(
            count
            for stage, count in updates.items()
            if any(part.startswith("student") for part in STAGES[stage].trains)
        )
        wanted = (plan.distill.updates + plan.finetune.updates) * variant.student_updates
        assert student == wanted, name


def test_a_plan_with_an_unknown_row_says_which(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    content["suites"]["main"]["rows"].append("scarce/gnerecal")
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="scarce/gnerecal"):
        load_plan(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A plan of the smallest sizes, its output and its results, with two cells run by the command."""
    folder = tmp_path_factory.mktemp("methods")
    model = {"warm": {"steps": 2, "batch": 4}, "images": 20, "pretrain": SHORT}
    steps = {"updates": 2, "lr_start": 1e-3, "lr_end": 1e-4}
    content = {
        "questions": 6,
        "held_out_images": 5,
        "pretrain_images": 20,
        "batch": 4,
        "betas": [0.9, 0.98],
        "lora": {"rank": 4, "alpha": 4},
        "recalibrate": steps,
        "distill": steps,
        "finetune": steps,
        "models": {
            "strong": {"internvl": SMALL, "seed": 0, **model},
            "student": {"qwen2_vl": SMALL, "seed": 1, **model},
        },
        "data": {"scarce": {"images": 12, "wrong_answers": 0.3}},
        "settings": {"scarce": {"teacher": "strong", "student": "student", "data": "scarce"}},
        "variants": {
            "baseline": {"title": "before"},
            "aligned": {
                "title": "aligned",
                "method": "genrecal",
                "run": {"recalibrator": {"answer_input": "aligned"}},
            },
            "minillm": {"title": "MiniLLM", "method": "minillm"},
        },
        "suites": {
            "small": {
                "title": "Small",
                "rows": ["scarce/baseline", "scarce/aligned"],
                "against": ["scarce/baseline"],
            }
        },
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--plan", str(path), "--output", str(folder / "out"), "--results", str(folder / "results")]
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.methods", "run", "--seeds", "1", "--workers", "1", *words],
        cwd=ROOT,
        env=variables | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return path, folder / "out", folder / "results"


def test_a_cell_holds_what_a_table_and_a_reader_need(tiny: tuple[Path, Path, Path]) -> None:
    path, output, results = tiny
    cell = json.loads((results / "scarce/aligned/0.json").read_text())
    assert {name: len(text.split()) for name, text in cell["grades"].items() if name.startswith("mm")} == {
        "mmb": 6,
        "mmmu": 6,
        "mmvet": 6,
    }
    assert len(cell["grades"]["first"].split()) == len(cell["grades"]["later"].split()) >= 10
    assert {name: stage["updates"] for name, stage in cell["stages"].items()} == {
        "recalibrate": 2,
        "distill": 2,
        "finetune": 2,
    }
    assert cell["student_updates"] == 4
    assert cell["stages"]["distill"]["verdict"]["reads"] and cell["stages"]["distill"]["readings"]
    assert cell["config"]["recalibrator"]["answer_input"] == "aligned"
    assert not (output / "runs/scarce/aligned-0").exists()
    text = suite_table(load_plan(path), "small", results)
    assert "| aligned |" in text or "| **aligned** |" in text


def test_a_finished_cell_is_left_alone_and_another_plan_is_refused(tiny: tuple[Path, Path, Path]) -> None:
    path, output, results = tiny
    cell = Cell(seed=0, setting="scarce", variant="aligned")
    before = (results / "scarce/aligned/0.json").stat().st_mtime_ns
    assert _work(path, cell, output, results) == "there already"
    assert (results / "scarce/aligned/0.json").stat().st_mtime_ns == before
    other = load_plan(path, ["batch=8"])
    with pytest.raises(ConfigError, match="made with another plan"):
        is_done(other, cell, results)
    assert not is_done(other, Cell(seed=1, setting="scarce", variant="aligned"), results)


ALL_OF_OUTPUT = {
    "test": (["questions=7"], draw_test_sets),
    "pretrain": (["pretrain_images=21"], pretrain_set),
    "models/student": (["models.student.seed=9"], lambda plan, out: model_folder(plan, out, "student")),
    "data/scarce-0": (["data.scarce.images=13"], lambda plan, out: distill_set(plan, out, "scarce", 0)),
}


@pytest.mark.parametrize("folder", ALL_OF_OUTPUT)
def test_what_another_plan_made_is_not_used(tiny: tuple[Path, Path, Path], folder: str) -> None:
    path, output, _ = tiny
    overrides, use = ALL_OF_OUTPUT[folder]
    before = {one: one.stat().st_mtime_ns for one in (output / folder).rglob("*")}
    use(load_plan(path), output)
    with pytest.raises(ConfigError, match=f"{output / folder}: was made with another plan. Delete it, or"):
        use(load_plan(path, overrides), output)
    assert before == {one: one.stat().st_mtime_ns for one in (output / folder).rglob("*")}


def test_the_command_refuses_models_of_another_plan(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, output, _ = tiny
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["models"]["strong"]["warm"]["steps"] = 3
    other = tmp_path / "plan.yaml"
    other.write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--plan", str(other), "--output", str(output), "--results", str(tmp_path / "results")]
    result = CliRunner().invoke(app, ["run", "--seeds", "1", *words])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(f"{output}/models/strong: was made with another plan")


def test_labels_of_another_plan_are_not_used(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, output, _ = tiny
    plan = load_plan(path, ["variants.aligned.run.labels=teacher"])
    labels = output / "labels" / "strong-scarce-0"
    write_made(labels, {"of": "another plan"})
    with pytest.raises(ConfigError, match=f"{labels}: was made with another plan"):
        run_cell(plan, Cell(seed=0, setting="scarce", variant="aligned"), output, tmp_path, None)  # type: ignore[arg-type]
    shutil.rmtree(labels)


def test_a_method_that_cannot_serve_the_pair_fails_alone(tiny: tuple[Path, Path, Path]) -> None:
    path, output, results = tiny
    line = _work(path, Cell(seed=0, setting="scarce", variant="minillm"), output, results)
    assert line.startswith("FAILED: method: minillm cannot serve this pair")
    assert not (results / "scarce/minillm").exists()


def test_operations_are_counted_by_stage(tiny: tuple[Path, Path, Path]) -> None:
    _, _, results = tiny
    counted = json.loads((results / "flops.json").read_text())
    assert list(counted) == ["scarce/aligned"]
    # Stage 2 sends gradients through the student on top of what stage 1 does for the Recalibrator.
    assert counted["scarce/aligned"]["distill"] > counted["scarce/aligned"]["finetune"] > 0


def test_the_updates_of_a_run_are_the_plan_s(tiny: tuple[Path, Path, Path]) -> None:
    path, output, _ = tiny
    plan = load_plan(path)
    config = run_config(plan, Cell(seed=0, setting="scarce", variant="aligned"), output)
    assert {name: stage.micro_batch for name, stage in config.stages.items()} == {
        "recalibrate": 4,
        "distill": 4,
        "finetune": 4,
    }
    assert config.labels == "given" and config.teacher is not None


def committed() -> list[Path]:
    return sorted(RESULTS.glob("*/*/*.json"))


def test_committed_cells_belong_to_the_plan(plan: Plan) -> None:
    assert committed(), "no results are committed"
    for path in committed():
        content = json.loads(path.read_text(encoding="utf-8"))
        setting, variant = path.parts[-3:-1]
        cell = Cell(seed=int(path.stem), setting=setting, variant=variant)
        assert content["made_with"] == made_with(plan, cell), path
        assert content["cell"] == cell.row and content["seed"] == cell.seed
        assert str(ROOT) not in path.read_text(encoding="utf-8")


def test_the_document_shows_the_committed_tables(plan: Plan, tmp_path: Path) -> None:
    fresh = tmp_path / "evidence.md"
    fresh.write_text(EVIDENCE.read_text(encoding="utf-8"), encoding="utf-8")
    put_between_markers(fresh, all_tables(plan, RESULTS))
    assert fresh.read_text(encoding="utf-8") == EVIDENCE.read_text(encoding="utf-8"), (
        "run: python -m benchmarks.methods table --document docs/evidence.md"
    )


def test_rows_of_a_suite_take_equal_updates_where_the_plan_says_so(plan: Plan) -> None:
    for suite in plan.suites.values():
        counts = {
            record["student_updates"] / plan.variants[name.partition("/")[2]].student_updates
            for name in suite.rows
            for record in read_row(RESULTS, name).cells.values()
            if record["stages"]
        }
        assert len(counts) <= 1, suite.title
