"""Figure 9: the four losses over the stage that trains the Recalibrator alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from genrecal.figures.canvas import PALETTE, entitle, legend_below, log_axis, panels
from genrecal.figures.naming import side_by_side
from genrecal.figures.runs import Missing, Run, metrics, read_each
from genrecal.figures.smooth import WINDOW, rolling_mean

# term of metrics.jsonl -> the paper's name, colour, line
CURVES = {
    "ar": ("Recalib(q_s, a_l)", PALETTE[0], "-"),
    "reg_ar": ("Recalib(q_l, a_l)", PALETTE[1], "-"),
    "sft": ("SmallVLM(q_s, a_s)", PALETTE[2], "--"),
    "teacher_ar": ("LargeVLM(q_l, a_l)", PALETTE[3], "--"),
}
COLUMNS = 3
# A larger range of losses is drawn on a logarithmic axis.
WIDE = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One run's stage: nats per answer token by step."""

    run: str
    stage: str
    curves: dict[str, tuple[tuple[int, float], ...]]  # term -> (step, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    panels: tuple[Panel, ...]
    columns: int | None  # of runs that belong side by side
    left_out: str


def read(runs: Sequence[Run]) -> Losses:
    found = read_each(runs, _panel)
    if not found.runs:
        raise Missing("no run has a step with the term 'ar'", fix="Name runs of a method with a Recalibrator")
    ordered, columns = side_by_side(found.runs)
    return Losses(
        panels=tuple(found.values[run.folder] for run in ordered), columns=columns, left_out=found.left_out
    )


def draw(data: Losses) -> Figure:
    figure, axes = panels(len(data.panels), columns=data.columns or COLUMNS, width_in=3.7, height_in=2.8)
    for one, panel in zip(axes, data.panels, strict=True):
        for term, curve in panel.curves.items():
            label, color, line = CURVES[term]
            steps, values = [step for step, _ in curve], [value for _, value in curve]
            one.plot(steps, values, color=color, lw=0.7, alpha=0.3)
            one.plot(steps, rolling_mean(values), line, color=color, lw=1.8, label=label)
        values = [value for curve in panel.curves.values() for _, value in curve]
        if min(values) > 0 and max(values) / min(values) > WIDE:
            log_axis(one)
        else:
            one.set_ylim(bottom=0)
        entitle(one, panel.run)
        one.set_xlabel(f"optimizer step of {panel.stage}")
        one.set_ylabel("nats per token")
    legend_below(figure, axes)
    return figure


def caption(data: Losses) -> str:
    steps = sorted({len(panel.curves["ar"]) for panel in data.panels})
    of_steps = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    text = (
        f"Cross-entropy over the Recalibrator's own stage, n = {of_steps} optimizer steps; bold: mean over"
        f" a window of {WINDOW:.0%} of them, faint: each step. SmallVLM is counted over the student's tokens,"
        " the others over the teacher's. SmallVLM and LargeVLM are not trained here."
    )
    without = [panel.run for panel in data.panels if "reg_ar" not in panel.curves]
    if without:
        text += f" Without regularisation, and so without Recalib(q_l, a_l): {', '.join(without)}."
    return text + data.left_out


def table(data: Losses) -> list[dict[str, Any]]:
    rows = []
    for panel in data.panels:
        by_term = {term: dict(curve) for term, curve in panel.curves.items()}
        for step in sorted({step for curve in by_term.values() for step in curve}):
            values = {term: curve.get(step, "") for term, curve in by_term.items()}
            rows.append({"run": panel.run, "stage": panel.stage, "step": step, **values})
    return rows


def _panel(run: Run) -> Panel | None:
    rows = metrics(run)
    stage = next((row["stage"] for row in rows if "ar" in row["terms"]), None)
    if stage is None:
        return None
    curves = {
        term: tuple(
            (row["step"], float(row["terms"][term]))
            for row in rows
            if row["stage"] == stage and row["terms"].get(term) is not None
        )
        for term in CURVES
    }
    return Panel(run=run.title, stage=stage, curves={term: curve for term, curve in curves.items() if curve})
