"""Figures 9 and 10 and the reading: the values on the page are those of the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genrecal.figures import losses, progress, reading
from genrecal.figures.canvas import style
from genrecal.figures.runs import Missing, open_runs
from genrecal.figures.smooth import rolling_mean
from tests.figures.sample_runs import STEPS, write_run


def plain(folder: Path, **settings: object) -> Path:
    return write_run(folder, features=False, **settings)  # type: ignore[arg-type]


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_mean_keeps_level_and_ends() -> None:
    assert rolling_mean([2.0] * 40) == pytest.approx([2.0] * 40)
    assert rolling_mean([1.0, 5.0]) == [1.0, 5.0]  # too few to smooth
    values = list(np.linspace(0, 10, 50))
    smooth = rolling_mean(values)
    assert smooth[25] == pytest.approx(values[25])  # a straight line stays one
    assert smooth[0] == pytest.approx(np.mean(values[:3]))


def test_the_four_losses(tmp_path: Path) -> None:
    run = plain(tmp_path / "run")
    data = losses.read(open_runs([run]))
    (panel,) = data.panels
    assert (panel.stage, list(panel.curves)) == ("recalibrate", ["ar", "reg_ar", "sft", "teacher_ar"])
    stage = [row for row in rows_of(run) if row["stage"] == "recalibrate"]
    for term, curve in panel.curves.items():
        assert [value for _, value in curve] == [row["terms"][term] for row in stage]
    with style("test"):
        figure = losses.draw(data)
    labels = [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert labels == ["Recalib(q_s, a_l)", "Recalib(q_l, a_l)", "SmallVLM(q_s, a_s)", "LargeVLM(q_l, a_l)"]
    faint = figure.axes[0].lines[0]
    assert list(faint.get_ydata()) == [row["terms"]["ar"] for row in stage]
    assert f"n = {STEPS} optimizer steps" in losses.caption(data)
    assert len(losses.table(data)) == STEPS


def test_a_run_without_regularisation_says_so(tmp_path: Path) -> None:
    runs = open_runs([plain(tmp_path / "a"), plain(tmp_path / "b", method="genrecal-no-reg")])
    data = losses.read(runs)
    assert [panel.stage for panel in data.panels] == ["recalibrate", "recalibrate-no-reg"]
    assert "without Recalib(q_l, a_l): genrecal-no-reg" in losses.caption(data)
    with pytest.raises(Missing, match="no run has a step with the term 'ar'"):
        losses.read(open_runs([plain(tmp_path / "sft", method="sft")]))


def test_fifteen_points_by_excluded_domain(tmp_path: Path) -> None:
    folders = [plain(tmp_path / "all"), plain(tmp_path / "without", excluded=("science_math",))]
    data = progress.read(open_runs(folders))
    assert data.stages == ("recalibrate", "distill", "finetune")
    names = [(trend.benchmark, trend.run) for trend in data.trends]
    assert names == [
        ("MMB", "all data"),
        ("MMMU", "all data"),
        ("MMB", "without science & math"),
        ("MMMU", "without science & math"),
    ]
    trend = data.trends[0]
    assert [place for place, _ in trend.points] == pytest.approx([number / 5 for number in range(1, 16)])
    assert len(trend.unchanged) == 5
    records = json.loads((folders[0] / "points.json").read_text())
    assert [value for _, value in trend.points] == pytest.approx(
        [100 * one["scores"]["mmb"] for one in records]
    )
    with style("test"):
        figure = progress.draw(data)
    lines = {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    assert list(lines) == ["all data", "without science & math"]
    assert len(lines["all data"].get_xdata()) == 15
    caption = progress.caption(data)
    assert "15 points" in caption and "MMB n = 200, MMMU n = 120" in caption
    assert [row["stage"] for row in progress.table(data)[:15:5]] == ["recalibrate", "distill", "finetune"]


def test_methods_of_fewer_stages_end_with_the_others(tmp_path: Path) -> None:
    runs = open_runs([plain(tmp_path / "genrecal"), plain(tmp_path / "sft", method="sft")])
    data = progress.read(runs)
    assert data.stages == ("recalibrate", "distill or adapt", "finetune")
    sft = next(trend for trend in data.trends if trend.run == "sft")
    assert (sft.points[0][0], sft.points[-1][0]) == (pytest.approx(1.2), pytest.approx(3.0))
    with style("test"):
        progress.draw(data)


def test_seeds_are_a_mean_with_each_seed_behind_it(tmp_path: Path) -> None:
    runs = open_runs([plain(tmp_path / f"s{seed}", seed=seed) for seed in range(2)])
    data = progress.read(runs)
    with style("test"):
        figure = progress.draw(data)
    (bold,) = [line for line in figure.axes[0].lines if line.get_label() == "genrecal"]
    both = [trend for trend in data.trends if trend.benchmark == "MMB"]
    expected = np.mean([[value for _, value in trend.points] for trend in both], axis=0)
    np.testing.assert_allclose(bold.get_ydata(), expected)
    assert "mean over 2 seeds" in progress.caption(data)


def test_without_points_it_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"has no points\.json\. Give the run's config `evaluate"):
        progress.read(open_runs([plain(tmp_path / "run", points=False)]))


def test_a_run_that_is_not_finished_keeps_no_other_from_being_shown(tmp_path: Path) -> None:
    begun = plain(tmp_path / "begun", metrics=False, points=False)
    done = plain(tmp_path / "done", seed=1)
    runs = open_runs([begun, done])
    for figure, file in ((losses, "metrics.jsonl"), (reading, "metrics.jsonl"), (progress, "points.json")):
        data = figure.read(runs)
        assert f" Left out: {begun} has no {file}." in figure.caption(data)
        assert "Left out" not in figure.caption(figure.read(runs[1:]))
        with style("test"):
            figure.draw(data)
    # Of its seeds the first one that can be shown.
    assert [series.run for series in reading.read(runs).series] == ["genrecal, seed 1"]
    for figure in (losses, reading, progress):
        with pytest.raises(Missing, match=f"{begun} has no "):
            figure.read(runs[:1])


def test_the_reading(tmp_path: Path) -> None:
    run = plain(tmp_path / "run")
    data = reading.read(open_runs([run]))
    (series,) = data.series
    assert series.starts == {"recalibrate": 0, "distill": STEPS} and series.steps == 2 * STEPS
    probed = [row for row in rows_of(run) if "grad_distill" in row.get("reading", {})]
    expected = [
        (series.starts[row["stage"]] + row["step"], row["reading"]["kl_rise_first"]) for row in probed
    ]
    assert list(series.curves["kl_rise_first"]) == expected
    # Steps whose batch held one sample have no rise.
    assert len(series.curves["kl_rise_later"]) == len(expected) - 2
    # The last stage does not distil: its probes of the student alone are not drawn.
    assert max(step for step, _ in series.curves["grad_sft"]) < 2 * STEPS
    with style("test"):
        figure = reading.draw(data)
    assert figure.axes[1].get_yscale() == "log"
    # One line a stage, so that nothing is drawn between them.
    lines = [line for line in figure.axes[0].lines if line.get_label() == "first answer token"]
    assert [len(line.get_xdata()) for line in lines] == [7, 7]
    with pytest.raises(Missing, match="no run was probed"):
        reading.read(open_runs([plain(tmp_path / "sft", method="sft")]))
