"""Figures 1, 2 and 5: scores before and after, with their spread, and only where they compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genrecal.figures import gains, pairs
from genrecal.figures.canvas import style
from genrecal.figures.runs import Missing, Run, open_runs
from tests.figures.sample_runs import write_bench, write_run

BEFORE = {"small": 0.40, "large": 0.50}
TEACHERS = {"A": 0.06, "B": 0.03}


def plain(folder: Path, **settings: object) -> Path:
    return write_run(folder, metrics=False, features=False, points=False, **settings)  # type: ignore[arg-type]


@pytest.fixture
def grid_of_runs(tmp_path: Path) -> list[Path]:
    """Two students by two teachers, and SFT of the small one."""
    folders = []
    for student, score in BEFORE.items():
        place = tmp_path / "models" / student
        write_bench(tmp_path / "models" / f"{student}-bench", {"mmb": score}, subject=str(place))
        for teacher, gain in TEACHERS.items():
            folders.append(
                plain(
                    tmp_path / f"{student}-{teacher}",
                    teacher=teacher,
                    student=place,
                    after={"mmb": score + gain},
                )
            )
    sft = plain(tmp_path / "sft", method="sft", student=tmp_path / "models" / "small", after={"mmb": 0.41})
    return [*folders, sft]


def test_gains_by_student(grid_of_runs: list[Path]) -> None:
    data = gains.read_by_student(open_runs(grid_of_runs))
    small = [bar for bar in data.bars if bar.group == "small"]
    assert [bar.series for bar in small] == [None, "genrecal, A", "genrecal, B", "sft"]
    assert [round(bar.value.mean, 6) for bar in small] == [40, 46, 43, 41]
    assert [bar.gain and round(bar.gain, 6) for bar in small] == [None, 6, 3, 1]
    # The bench's own interval: over 200 questions, about 6.9 points to either side.
    assert small[1].value.seeds == 1 and small[1].value.low == pytest.approx(46 - 6.9, abs=0.05)
    assert "95% bootstrap interval over questions" in gains.caption(data)
    assert "MMB n = 200" in gains.caption(data)
    with style("test"):
        figure = gains.draw(data)
    heights = sorted(round(patch.get_height(), 3) for patch in figure.axes[0].patches)
    assert heights == [40, 41, 43, 46, 50, 53, 56]
    rows = gains.table(data)
    assert len(rows) == 7 and rows[1]["series"] == "genrecal, A" and rows[0]["series"] == "before"


def test_gains_by_teacher(grid_of_runs: list[Path]) -> None:
    data = gains.read_by_teacher(open_runs(grid_of_runs))
    assert [(bar.group, bar.student, bar.series) for bar in data.bars] == [
        ("A", "small", None),
        ("A", "small", "small"),
        ("A", "large", None),
        ("A", "large", "large"),
        ("B", "small", None),
        ("B", "small", "small"),
        ("B", "large", None),
        ("B", "large", "large"),
    ]
    with pytest.raises(Missing, match="fewer than two teachers"):
        gains.read_by_teacher(open_runs(grid_of_runs[::2]))


def test_seeds_are_pooled_and_a_shared_start_counts_once(tmp_path: Path) -> None:
    student = tmp_path / "models" / "small"
    write_bench(tmp_path / "models" / "small-bench", {"mmb": 0.4}, subject=str(student))
    folders = [
        plain(tmp_path / f"seed{seed}", seed=seed, student=student, after={"mmb": score})
        for seed, score in enumerate((0.44, 0.46, 0.51))
    ]
    before, after = gains.read_by_student(open_runs(folders)).bars
    assert (before.value.seeds, after.value.seeds) == (1, 3)
    assert after.value.mean == pytest.approx(47.0)
    assert (after.value.low, after.value.high) == (pytest.approx(44.0), pytest.approx(51.0))
    assert after.gain == pytest.approx(7.0)


def test_scores_on_other_questions_are_not_compared(tmp_path: Path) -> None:
    student = tmp_path / "models" / "small"
    write_bench(tmp_path / "models" / "small-bench", {"mmb": 0.4}, subject=str(student), data="2" * 64)
    runs = open_runs([plain(tmp_path / "run", student=student, after={"mmb": 0.5})])
    with pytest.raises(Missing, match="answered different questions"):
        gains.read_by_student(runs)


def test_missing_scores_say_how_to_get_them(tmp_path: Path) -> None:
    run = plain(tmp_path / "run", student=tmp_path / "models" / "small")
    with pytest.raises(Missing, match=r"run has no scores\. genrecal bench .*run/student --mmb FILE"):
        gains.read_by_student(open_runs([run]))
    write_bench(run / "student-bench", {"mmb": 0.5}, subject="x")
    with pytest.raises(Missing, match=r"no scores of the student .*small before\. genrecal bench"):
        gains.read_by_student(open_runs([run]))
    # Sets that were not taken both times are left out.
    write_bench(tmp_path / "models" / "small-bench", {"mmmu": 0.5}, subject="y")
    with pytest.raises(Missing, match="no benchmark was taken both before and after"):
        gains.read_by_student(open_runs([run]))


def test_the_grid(grid_of_runs: list[Path]) -> None:
    data = pairs.read(open_runs(grid_of_runs))
    assert (data.method, data.teachers, data.students) == ("genrecal", ("A", "B"), ("small", "large"))
    cells = {place: round(value.mean, 6) for place, value in data.cells["MMB"].items()}
    assert cells == {
        ("before", "small"): 40,
        ("A", "small"): 46,
        ("B", "small"): 43,
        ("before", "large"): 50,
        ("A", "large"): 56,
        ("B", "large"): 53,
    }
    with style("test"):
        figure = pairs.draw(data)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), [[40, 50], [46, 56], [43, 53]])
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["40.0", "46.0\n+6.0"]
    assert len(pairs.table(data)) == 6
    assert "one seed" in pairs.caption(data)


def test_a_pair_without_a_run_stays_empty(grid_of_runs: list[Path]) -> None:
    data = pairs.read(open_runs(grid_of_runs[:3]))
    assert ("B", "large") not in data.cells["MMB"]
    with style("test"):
        (image,) = pairs.draw(data).axes[0].images
    assert np.ma.getmaskarray(image.get_array())[2, 1]


def test_one_pair_makes_no_grid(grid_of_runs: list[Path]) -> None:
    runs: tuple[Run, ...] = open_runs(grid_of_runs[:1])
    with pytest.raises(Missing, match="one teacher and one student"):
        pairs.read(runs)
