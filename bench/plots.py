"""Coordinates of the report's drawings; the template writes the SVG, so that every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.frontier import Cost, Point

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 46
TICKS = 4
LABEL_LENGTH = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A subject on the plot."""

    x: float
    y: float
    label: str
    title: str
    best: bool
    before: bool  # the label stands at the left of the mark, for the right edge is near
    label_y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Accuracy against one cost."""

    title: str
    marks: tuple[Mark, ...]
    line: str  # the frontier as points of a polyline
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = HEIGHT - BOTTOM
    right: int = WIDTH - RIGHT
    top: int = TOP


def plot(points: Sequence[Point], cost: Cost) -> Plot:
    """Costs from 0 on, accuracy in the range that occurs; the frontier as steps, as nothing lies between."""
    scores = [100 * point.accuracy for point in points]
    x_step, x_most = steps(0.0, max(point.cost for point in points) * 1.05)
    y_step, y_most = steps(min(scores), max(scores))
    y_least = math.floor(min(scores) / y_step) * y_step
    if y_most <= y_least:
        y_most = y_least + y_step

    def x_of(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / x_most, 1)

    def y_of(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_least) / (y_most - y_least), 1)

    marks: list[Mark] = []
    for point in points:
        x, y = x_of(point.cost), y_of(100 * point.accuracy)
        label_y = y - 9
        # A label that would lie on an earlier one goes below it.
        while any(abs(label_y - one.label_y) < 12 and abs(x - one.x) < 150 for one in marks):
            label_y += 13
        short = point.name if len(point.name) <= LABEL_LENGTH else f"…{point.name[-LABEL_LENGTH + 1 :]}"
        marks.append(
            Mark(
                x=x,
                y=y,
                label=short,
                title=f"{point.name}: {100 * point.accuracy:.1f}% at {number(point.cost)} {cost.unit}",
                best=point.best,
                before=x > WIDTH / 2,
                label_y=label_y,
            )
        )
    corners: list[tuple[float, float]] = []
    for mark in (mark for mark in marks if mark.best):
        if corners:
            corners.append((mark.x, corners[-1][1]))
        corners.append((mark.x, mark.y))
    if corners:
        corners.append((WIDTH - RIGHT, corners[-1][1]))
    return Plot(
        title=f"{cost.title}, {cost.unit}",
        marks=tuple(marks),
        line=" ".join(f"{x},{y}" for x, y in corners),
        x_ticks=tuple((x_of(value), number(value)) for value in ticks(0.0, x_most, x_step)),
        y_ticks=tuple((y_of(value), number(value)) for value in ticks(y_least, y_most, y_step)),
    )


def steps(least: float, most: float) -> tuple[float, float]:
    """A round step for about `TICKS` ticks, and the first multiple of it that is not below `most`."""
    span = most - least if most > least else max(abs(most), 1.0)
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return step, math.ceil(most / step - 1e-9) * step


def ticks(least: float, most: float, step: float) -> list[float]:
    return [least + place * step for place in range(round((most - least) / step) + 1)]


def number(value: float) -> str:
    """Three digits that matter, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
