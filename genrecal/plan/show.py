"""A plan for people and for programs: tables on the console, plain values as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from genrecal.core.console import console
from genrecal.plan.plan import DAY_S, Plan
from genrecal.plan.stage import StagePlan

GIB = 2**30


def show_plan(plan: Plan) -> None:
    """Print it."""
    machine = plan.config.machine
    figures = machine.figures
    console.print(
        f"{plan.ranks:,} x {machine.gpu}: {figures.tflops:g} TFLOP/s dense, {figures.memory_gib:g} GiB,"
        f" {machine.spare:.0%} of it spare ({figures.sheet})"
    )
    console.print(f"lengths {plan.lengths}\n")
    for title, rows in _tables(plan).items():
        table = Table(title, *(stage.name for stage in plan.stages), title_justify="left")
        for name, cells in rows.items():
            table.add_row(name, *cells)
        console.print(table)
    for stage, fit in zip(plan.stages, plan.fits, strict=True):
        console.print(f"{stage.name}: {fit.sentence()}", style=None if fit.fits else "yellow")
    if plan.images:
        console.print(_images(plan))
        console.print("hardware utilisation: recomputation counts, and attention's whole square")


def _tables(plan: Plan) -> dict[str, dict[str, list[str]]]:
    """Rows of cells, a cell for each stage, by title."""
    stages = plan.stages
    return {
        "work": {
            "samples": [f"{stage.samples:,}" for stage in stages],
            "samples in a step": [f"{stage.global_batch:,}" for stage in stages],
            "optimizer steps": [f"{stage.steps:,}" for stage in stages],
            "tokens of a sample, student / teacher": [
                f"{stage.student_tokens:,.0f} / {stage.teacher_tokens:,.0f}" for stage in stages
            ],
            "tokens, student": [_short(stage.tokens) for stage in stages],
            **_by_part([stage.flops_of_sample for stage in stages], "TFLOP of a sample", 1e12, 2),
            "FLOP": [f"{stage.flops:.2e}" for stage in stages],
            f"days at {plan.config.time.utilisation:.0%}": [
                f"{plan.days(stage.flops):,.2f}" for stage in stages
            ],
            "GPU-hours": [f"{plan.gpu_hours(stage.flops):,.0f}" for stage in stages],
            "days of communication alone": [f"{_communication_days(plan, stage):,.2f}" for stage in stages],
        },
        "parameters": {
            **_by_part([stage.parameters.trained for stage in stages], "trained: ", 1e6, 1, "M"),
            **_by_part([stage.parameters.frozen for stage in stages], "frozen: ", 1e6, 1, "M"),
        },
        "GiB of one GPU": {
            **_by_part([stage.memory.held for stage in stages], "held: ", GIB, 2),
            **_by_part([stage.memory.moments for stage in stages], "then: ", GIB, 2),
            "peak": [f"{stage.memory.peak / GIB:.2f}" for stage in stages],
            **_by_part([stage.memory.activations for stage in stages], "of the micro-step: ", GIB, 2),
        },
        "GB that a GPU receives": {
            **_by_part([stage.communication.micro_step for stage in stages], "micro-step, ", 1e9, 2),
            **_by_part([stage.communication.in_node for stage in stages], "micro-step in the node, ", 1e9, 2),
            **_by_part([stage.communication.step for stage in stages], "step, ", 1e9, 2),
        },
        "disk": {
            "checkpoints": [_size(stage.disk.checkpoints) for stage in stages],
            "finished stage": [_size(stage.disk.stage) for stage in stages],
            **{
                f"teacher cache, {name}": [
                    _size(stage.disk.cache[name]) if name in stage.disk.cache else "" for stage in stages
                ]
                for name in dict.fromkeys(name for stage in stages for name in stage.disk.cache)
            },
        },
    }


def _by_part(stages: list[Any], title: str, unit: float, digits: int, mark: str = "") -> dict[str, list[str]]:
    """A row for each part that any stage has; the parts' sum first where the title names a figure."""
    parts = dict.fromkeys(part for stage in stages for part in stage)
    rows = {}
    if not title.endswith((": ", ", ")):
        rows[title] = [f"{sum(stage.values()) / unit:,.{digits}f}" for stage in stages]
        title = "  "
    for part in parts:
        rows[f"{title}{part}"] = [
            f"{stage[part] / unit:,.{digits}f}{mark}" if part in stage else "" for stage in stages
        ]
    return rows


def _images(plan: Plan) -> Table:
    table = Table("tiles", "tokens", *(f"{stage.name}\nFLOP, days" for stage in plan.stages))
    spans = {
        names: f"{days[0]:g}-{days[1]:g}"
        for names, days in plan.config.time.days.items()
        if names in plan.images[0].implied
    }
    for names, span in spans.items():
        table.add_column(f"utilisation, {span} days\n{names}")
    for row in plan.images:
        table.add_row(
            str(row.tiles),
            f"{row.student_tokens:,.0f}",
            *(f"{row.flops[stage.name]:.2e}, {row.days[stage.name]:.2f}" for stage in plan.stages),
            *(f"{low:.1%} - {high:.1%}" for low, high in (row.implied[names] for names in spans)),
        )
    return table


def _communication_days(plan: Plan, stage: StagePlan) -> float:
    return stage.communication.seconds_of_step(stage.accumulation) * stage.steps / DAY_S


def _short(number: float) -> str:
    for limit, mark in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{mark}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    for limit, mark in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.1f} {mark}"
    return f"{number:.0f} B"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, FLOPs, days."""
    return {
        "machine": {
            "gpu": plan.config.machine.gpu,
            "ranks": plan.ranks,
            **asdict(plan.config.machine.figures),
        },
        "utilisation": plan.config.time.utilisation,
        "lengths": plan.lengths,
        "stages": [
            {
                **asdict(stage),
                "flops": stage.flops,
                "tokens": stage.tokens,
                "days": plan.days(stage.flops),
                "gpu_hours": plan.gpu_hours(stage.flops),
                "communication_days": _communication_days(plan, stage),
                "peak_bytes": stage.memory.peak,
                "fit": {"fits": fit.fits, **asdict(fit)},
            }
            for stage, fit in zip(plan.stages, plan.fits, strict=True)
        ],
        "images": [asdict(row) for row in plan.images],
    }
