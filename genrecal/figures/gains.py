"""Figures 1 and 2: scores before and after, for each student by method, and for each teacher by student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.report import Report
from genrecal.figures.canvas import GREY, color_of, entitle, ink_on, legend_below, panels
from genrecal.figures.naming import NO_TEACHER, names
from genrecal.figures.runs import Missing, Run
from genrecal.figures.scores import Value, benchmarks, pooled, questions, scored, whiskers

BAR_IN = 0.36
GAP = 0.8  # between groups, in bars
WIDEST_IN = 13.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A student's score before, or after one series' training."""

    benchmark: str
    group: str
    student: str
    series: str | None  # None: before
    value: Value
    gain: float | None  # points over the same student before


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """Bars by benchmark and group, in the order in which they stand."""

    by: str  # student | teacher: what a group is
    bars: tuple[Bar, ...]


def read_by_student(runs: Sequence[Run]) -> Gains:
    """A group for each student, a bar for each method, and for each teacher where there are several."""
    return _read(scored(runs), by="student")


def read_by_teacher(runs: Sequence[Run]) -> Gains:
    """A group for each teacher, and in it each student before and after; runs without one are left out."""
    taught = [run for run in scored(runs) if run.parts["teacher"] != NO_TEACHER]
    if len({run.parts["teacher"] for run in taught}) < 2:
        raise Missing(
            "the runs have fewer than two teachers between them", fix="Name runs that differ in their teacher"
        )
    return _read(taught, by="teacher")


def draw(data: Gains) -> Figure:
    titles = list(dict.fromkeys(bar.benchmark for bar in data.bars))
    series = list(dict.fromkeys(bar.series for bar in data.bars if bar.series is not None))
    widest = max(_width(data, title) for title in titles)
    width_in = max(2.6, 0.8 + BAR_IN * widest)
    columns = len(titles) if len(titles) * width_in <= WIDEST_IN else 1
    figure, axes = panels(len(titles), columns=columns, width_in=width_in, height_in=2.9)
    for title, one in zip(titles, axes, strict=True):
        place, ticks = 0.0, []
        for group in dict.fromkeys(bar.group for bar in data.bars):
            bars = [bar for bar in data.bars if bar.benchmark == title and bar.group == group]
            if not bars:
                continue
            ticks.append((place + (len(bars) - 1) / 2, group))
            for bar in bars:
                _draw_bar(one, place, bar, series)
                place += 1
            place += GAP
        entitle(one, title)
        one.set_xticks([where for where, _ in ticks], [_wrapped(name) for _, name in ticks])
        one.tick_params(axis="x", length=0)
        one.grid(axis="x", visible=False)
        one.set_ylabel("score, %")
        one.set_ylim(
            0, min(112.0, 1.22 * max(bar.value.high for bar in data.bars if bar.benchmark == title)) or 1
        )
        one.set_xlim(-0.8, place - GAP - 0.2)
    legend_below(figure, axes)
    return figure


def caption(data: Gains) -> str:
    counts = {bar.benchmark: bar.value.n for bar in data.bars}
    what = (
        "Scores of each student before and after training, by method."
        if data.by == "student"
        else "Scores of the student before and after, by the teacher that it learned from."
    )
    return (
        f"{what} Above a bar: points gained over the same student before; "
        f"{whiskers([bar.value for bar in data.bars])}. {questions(counts)}."
    )


def table(data: Gains) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": bar.benchmark,
            data.by: bar.group,
            **({} if data.by == "student" else {"student": bar.student}),
            "series": bar.series or "before",
            "score_percent": bar.value.mean,
            "low": bar.value.low,
            "high": bar.value.high,
            "gain_points": "" if bar.gain is None else bar.gain,
            "seeds": bar.value.seeds,
            "questions": bar.value.n,
        }
        for bar in data.bars
    ]


def _read(runs: Sequence[Run], *, by: str) -> Gains:
    bars: list[Bar] = []
    series = names(runs, without=(by,))
    for title in benchmarks(runs):
        for group in dict.fromkeys(run.parts[by] for run in runs):
            of_group = [run for run in runs if run.parts[by] == group]
            for student in dict.fromkeys(run.parts["student"] for run in of_group):
                of_student = [run for run in of_group if run.parts["student"] == student]
                bars += _of_student(title, group, of_student, series)
    if not bars:
        raise Missing(
            "no benchmark was taken both before and after", fix="Bench both students on the same sets"
        )
    return Gains(by=by, bars=tuple(bars))


def _of_student(title: str, group: str, runs: Sequence[Run], series_of: dict[Path, str]) -> list[Bar]:
    student = runs[0].parts["student"]
    before = pooled(_reports(runs, after=False), title)
    if before is None:
        return []
    bars = [Bar(benchmark=title, group=group, student=student, series=None, value=before, gain=None)]
    for series in dict.fromkeys(series_of[run.folder] for run in runs):
        of_series = [run for run in runs if series_of[run.folder] == series]
        value, start = (
            pooled(_reports(of_series, after=True), title),
            pooled(_reports(of_series, after=False), title),
        )
        if value is not None and start is not None:
            gain = value.mean - start.mean
            bars.append(
                Bar(benchmark=title, group=group, student=student, series=series, value=value, gain=gain)
            )
    return bars if len(bars) > 1 else []


def _reports(runs: Sequence[Run], *, after: bool) -> list[Report]:
    found = [run.after if after else run.before for run in runs]
    return [report for report in found if report is not None]


def _draw_bar(axes: Any, place: float, bar: Bar, series: Sequence[str]) -> None:
    before = bar.series is None
    color = GREY if before else color_of(series.index(str(bar.series)))
    label = "before" if before else str(bar.series)
    error = [[max(0.0, bar.value.mean - bar.value.low)], [max(0.0, bar.value.high - bar.value.mean)]]
    axes.bar(place, bar.value.mean, width=0.86, color=color, label=label)
    axes.errorbar(place, bar.value.mean, yerr=error, color="#404040", lw=1, capsize=2)
    axes.annotate(
        f"{bar.value.mean:.1f}",
        (place, 0),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=ink_on(color),
    )
    if bar.gain is not None:
        axes.annotate(
            f"{bar.gain:+.1f}",
            (place, bar.value.high),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _width(data: Gains, title: str) -> float:
    groups = [bar.group for bar in data.bars if bar.benchmark == title]
    return len(groups) + GAP * len(set(groups))


def _wrapped(name: str) -> str:
    """A long name on two lines, broken near its middle."""
    if len(name) <= 16:
        return name
    places = [place for place, letter in enumerate(name) if letter in "-_ +"]
    if not places:
        return name
    middle = min(places, key=lambda place: abs(place - len(name) / 2))
    return f"{name[: middle + 1].rstrip()}\n{name[middle + 1 :].lstrip()}"
