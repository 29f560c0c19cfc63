"""Does the Recalibrator read the student? What the paper does not show: docs/paper.md says why it matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from genrecal.figures.canvas import INK, PALETTE, entitle, legend_below, log_axis, panels
from genrecal.figures.naming import first_seeds
from genrecal.figures.runs import Missing, Run, metrics, read_each

# key of `reading` -> label, colour, line
RISES = {
    "kl_rise_first": ("first answer token", PALETTE[0], "-"),
    "kl_rise_later": ("later answer tokens", PALETTE[1], "-"),
}
NORMS = {
    "grad_distill_first": ("first answer token", PALETTE[0], "-"),
    "grad_distill_later": ("later answer tokens", PALETTE[1], "-"),
    "grad_sft": ("the student's own CE", PALETTE[2], "--"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One run's probes over the steps of the stages that distil, after each other."""

    run: str
    curves: dict[str, tuple[tuple[int, float], ...]]  # key -> (step over these stages, value)
    starts: dict[str, int]  # stage -> its first step over these stages
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    series: tuple[Series, ...]
    several_seeds: bool  # whether runs of other seeds were left out
    left_out: str


def read(runs: Sequence[Run]) -> Reading:
    found = read_each(runs, _series)
    if not found.runs:
        raise Missing("no run was probed while it distilled", fix="Name runs of a method with a Recalibrator")
    first = first_seeds(found.runs)
    return Reading(
        series=tuple(found.values[run.folder] for run in first),
        several_seeds=len(first) < len(found.runs),
        left_out=found.left_out,
    )


def draw(data: Reading) -> Figure:
    figure, axes = panels(2 * len(data.series), columns=2, width_in=4.6, height_in=2.6)
    for place, series in enumerate(data.series):
        rises, norms = axes[2 * place], axes[2 * place + 1]
        _plot(rises, series, RISES)
        rises.axhline(0, color=INK, lw=0.8, alpha=0.5)
        rises.set_ylabel("nats per answer token")
        _plot(norms, series, NORMS)
        log_axis(norms)
        norms.set_ylabel("gradient norm at z_q")
        for one, what in ((rises, "KL rise"), (norms, "gradient")):
            entitle(one, f"{series.run}: {what}", width=52)
            one.set_xlabel("optimizer step")
            one.set_xlim(0, series.steps)
            one.margins(y=0.16)  # room for the stages' names
            for stage, start in series.starts.items():
                one.axvline(start, color=INK, lw=0.8, alpha=0.35)
                one.annotate(
                    stage,
                    (start, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -2),
                    textcoords="offset points",
                    va="top",
                    fontsize=7.5,
                    alpha=0.8,
                )
    legend_below(figure, axes)
    return figure


def caption(data: Reading) -> str:
    counts = sorted({len(curve) for series in data.series for curve in series.curves.values()})
    return (
        "Left: by how much the KL to the teacher rises when each sample is given another sample's question"
        " features; near zero, the student is not read. Right: norms of the gradients of CE + KL, and of the"
        " student's own CE, at the student's question features; where those of later tokens are far below the"
        " first's, they teach the student little by this path."
        f" n = {_range(counts)} probed steps a curve; vertical lines: stages."
        + (" Of several seeds the first is shown." if data.several_seeds else "")
        + data.left_out
    )


def table(data: Reading) -> list[dict[str, Any]]:
    return [
        {"run": series.run, "step": step, "figure": key, "value": value}
        for series in data.series
        for key, curve in series.curves.items()
        for step, value in curve
    ]


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _plot(axes: Any, series: Series, kinds: dict[str, tuple[str, str, str]]) -> None:
    for key, (label, color, line) in kinds.items():
        if key in series.curves:
            mark = "o" if len(series.curves[key]) < 40 else None
            ends = [*list(series.starts.values())[1:], series.steps]
            # A line for each stage: nothing was measured between them.
            for start, end in zip(series.starts.values(), ends, strict=True):
                part = [point for point in series.curves[key] if start <= point[0] < end]
                if part:
                    steps, values = zip(*part, strict=True)
                    axes.plot(steps, values, line, color=color, lw=1.5, marker=mark, ms=3, label=label)


def _series(run: Run) -> Series | None:
    """The probes of the stages that distil; those of plain training hold the student's own gradient alone."""
    rows = metrics(run)
    distilling = {row["stage"] for row in rows if "grad_distill" in (row.get("reading") or {})}
    starts: dict[str, int] = {}
    steps = 0
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        stage = row["stage"]
        if stage not in distilling:
            continue
        if stage not in starts:
            starts[stage] = steps
            steps += row["steps"]
        for key in (*RISES, *NORMS):
            value = (row.get("reading") or {}).get(key)
            # A norm of zero has no place on a logarithmic axis.
            if value is not None and (key in RISES or value > 0):
                curves.setdefault(key, []).append((starts[stage] + row["step"], float(value)))
    if not curves:
        return None
    of_keys = {key: tuple(curve) for key, curve in curves.items()}
    return Series(run=run.title, curves=of_keys, starts=starts, steps=steps)
