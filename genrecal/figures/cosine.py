"""Figure 7: what the Recalibrator makes of the student's question against what it makes of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from genrecal.core.cosines import PairCosines, pair_cosines
from genrecal.figures.canvas import HEAT, entitle, ink_on, panels
from genrecal.figures.features import HOW, start_and_end
from genrecal.figures.naming import side_by_side
from genrecal.figures.runs import Missing, Run, read_each

NAMES = ("r_q_student", "r_q_teacher")
WRITTEN = 12  # up to so many pairs the cells hold their numbers
MOST_RUNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One run: rows from the student's question, columns from the teacher's."""

    run: str
    stage: str
    cosines: PairCosines


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrices:
    matrices: tuple[Matrix, ...]
    columns: int | None  # of runs that belong side by side
    left_out: str


def read(runs: Sequence[Run]) -> Matrices:
    found = read_each(runs, _matrix)
    if not found.runs:
        raise Missing("no run left features", fix=HOW)
    ordered, columns = side_by_side(found.runs)
    return Matrices(
        matrices=tuple(found.values[run.folder] for run in ordered), columns=columns, left_out=found.left_out
    )


def draw(data: Matrices) -> Figure:
    shown = data.matrices[:MOST_RUNS]
    columns = data.columns or (2 if len(shown) in (2, 4) else 3)
    figure, axes = panels(len(shown), columns=columns, width_in=3.9, height_in=3.8)
    low = min(float(one.cosines.matrix_NN.min()) for one in shown)
    for axes_, one in zip(axes, shown, strict=True):
        # One scale for all, so that panels compare.
        image = axes_.imshow(one.cosines.matrix_NN, cmap=HEAT, vmin=low, vmax=1.0, interpolation="none")
        size = len(one.cosines.matrix_NN)
        if size <= WRITTEN:
            for (row, column), value in np.ndenumerate(one.cosines.matrix_NN):
                color = ink_on(image.to_rgba(value)[:3])
                axes_.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
        entitle(axes_, one.run)
        axes_.set_xlabel(
            "pair, from the teacher's question\n"
            f"diagonal {one.cosines.diagonal:.3f}, off it {one.cosines.others:.3f}"
        )
        axes_.set_ylabel("pair, from the student's question")
        ticks = range(0, size, max(1, size // 10))
        axes_.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        axes_.set_yticks(ticks, [str(tick + 1) for tick in ticks])
        axes_.grid(visible=False)
        axes_.tick_params(length=0)
    rows = -(-len(shown) // min(columns, len(shown)))
    figure.colorbar(image, ax=axes, label="cosine", fraction=0.05, aspect=22 * rows, pad=0.02)
    return figure


def caption(data: Matrices) -> str:
    one = data.matrices[0]
    parts = [
        f"{matrix.run}: diagonal {matrix.cosines.diagonal:.3f}, off it {matrix.cosines.others:.3f}"
        f" (centred {matrix.cosines.centred[0]:.3f}, {matrix.cosines.centred[1]:.3f})"
        for matrix in data.matrices
    ]
    left = len(data.matrices) - MOST_RUNS
    return (
        "Cosine of the Recalibrator's outputs at the question, averaged over positions,"
        f" n = {len(one.cosines.matrix_NN)} question-answer pairs, after the stage {one.stage}: student's"
        " question (rows) against teacher's (columns). A Recalibrator that brings both together has a bright"
        " diagonal. Mean cosines: "
        + "; ".join(parts)
        + ". Centred: with the mean over the pairs taken off, as what all share brings any cosine near 1."
        + (f" {left} more runs are in the CSV." if left > 0 else "")
        + data.left_out
    )


def table(data: Matrices) -> list[dict[str, Any]]:
    return [
        {
            "run": one.run,
            "stage": one.stage,
            "student_pair": row + 1,
            "teacher_pair": column + 1,
            "cosine": float(value),
        }
        for one in data.matrices
        for (row, column), value in np.ndenumerate(one.cosines.matrix_NN)
    ]


def _matrix(run: Run) -> Matrix | None:
    found = start_and_end(run, NAMES)
    if found is None:
        return None
    end = found[1]
    tables = (end.tensors[name] for name in NAMES)
    return Matrix(run=run.title, stage=end.stage, cosines=pair_cosines(*tables))
