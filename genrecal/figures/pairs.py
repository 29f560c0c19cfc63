"""Figure 5: every teacher with every student, as a heat map for each benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from genrecal.figures.canvas import HEAT, entitle, ink_on, panels
from genrecal.figures.naming import NO_TEACHER
from genrecal.figures.runs import Missing, Run
from genrecal.figures.scores import Value, benchmarks, pooled, questions, scored

BEFORE = "before"
WIDEST_IN = 14.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Scores by benchmark, teacher and student; the first row holds the students before."""

    method: str
    teachers: tuple[str, ...]
    students: tuple[str, ...]
    cells: dict[str, dict[tuple[str, str], Value]]  # benchmark -> (teacher or "before", student) -> score


def read(runs: Sequence[Run]) -> Grid:
    taught = [run for run in scored(runs) if run.parts["teacher"] != NO_TEACHER]
    methods = list(dict.fromkeys(run.parts["method"] for run in taught))
    method = "genrecal" if "genrecal" in methods else methods[0] if methods else ""
    runs = [run for run in taught if run.parts["method"] == method]
    teachers = tuple(dict.fromkeys(run.parts["teacher"] for run in runs))
    students = tuple(dict.fromkeys(run.parts["student"] for run in runs))
    if len(teachers) < 2 and len(students) < 2:
        raise Missing(
            "the runs of one method have one teacher and one student between them",
            fix="Name runs of several pairs",
        )
    cells: dict[str, dict[tuple[str, str], Value]] = {title: {} for title in benchmarks(runs)}
    for title, of_title in cells.items():
        for student in students:
            of_student = [run for run in runs if run.parts["student"] == student]
            before = pooled([run.before for run in of_student if run.before], title)
            if before is not None:
                of_title[BEFORE, student] = before
            for teacher in teachers:
                pair = [run for run in of_student if run.parts["teacher"] == teacher]
                after = pooled([run.after for run in pair if run.after], title)
                if after is not None:
                    of_title[teacher, student] = after
    return Grid(method=method, teachers=teachers, students=students, cells=cells)


def draw(data: Grid) -> Figure:
    rows = (BEFORE, *data.teachers)
    longest = max(len(name) for name in rows)
    width_in = max(3.4, 1.6 + 0.07 * longest + 0.95 * len(data.students))
    height_in = 1.3 + 0.5 * len(rows)
    columns = len(data.cells) if len(data.cells) * width_in <= WIDEST_IN else 2
    figure, axes = panels(len(data.cells), columns=columns, width_in=width_in, height_in=height_in)
    for (title, cells), one in zip(data.cells.items(), axes, strict=True):
        values = np.full((len(rows), len(data.students)), np.nan)
        for (teacher, student), value in cells.items():
            values[rows.index(teacher), data.students.index(student)] = value.mean
        image = one.imshow(values, cmap=HEAT, aspect="auto", interpolation="none")
        for (teacher, student), value in cells.items():
            start = cells.get((BEFORE, student))
            text = f"{value.mean:.1f}"
            if teacher != BEFORE and start is not None:
                text += f"\n{value.mean - start.mean:+.1f}"
            one.text(
                data.students.index(student),
                rows.index(teacher),
                text,
                ha="center",
                va="center",
                fontsize=9,
                color=ink_on(image.to_rgba(value.mean)[:3]),
            )
        one.axhline(0.5, color="white", lw=3)
        entitle(one, f"{title}, %")
        one.set_xticks(
            range(len(data.students)), data.students, rotation=20, ha="right", rotation_mode="anchor"
        )
        one.set_yticks(range(len(rows)), rows)
        one.set_xlabel("student")
        one.set_ylabel("teacher")
        one.grid(visible=False)
        one.tick_params(length=0)
        for side in one.spines.values():
            side.set_visible(False)
    return figure


def caption(data: Grid) -> str:
    counts = {title: value.n for title, cells in data.cells.items() for value in cells.values()}
    seeds = sorted({value.seeds for cells in data.cells.values() for value in cells.values()})
    of_seeds = "one seed" if seeds == [1] else f"means over {seeds[0]} to {seeds[-1]} seeds"
    return (
        f"Score after {data.method} for each teacher and student, and points gained over the same student"
        f" before (first row); {of_seeds}. Empty: no run. {questions(counts)}."
    )


def table(data: Grid) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": title,
            "teacher": teacher,
            "student": student,
            "score_percent": value.mean,
            "low": value.low,
            "high": value.high,
            "seeds": value.seeds,
            "questions": value.n,
        }
        for title, cells in data.cells.items()
        for (teacher, student), value in cells.items()
    ]
