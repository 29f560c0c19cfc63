"""Curves over training steps as inline SVG that takes the page's own text colour.

One panel is one SVG: a page lays them out in as many columns as its width allows. At most POINTS points a
line, so that the page stays small however long the training was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from genrecal.figures.canvas import INK, inline_svg, style

POINTS = 80
WIDTH_IN, HEIGHT_IN = 4.2, 2.7
Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One quantity: (step, value) for each seed."""

    name: str
    color: str
    seeds: tuple[Curve, ...]
    dashed: bool = False


def panel(name: str, lines: Sequence[Line], *, log: bool) -> Markup:
    """Draw `lines` over the step; with several seeds a bold mean over pale single ones.

    Args:
        name: unique on the page: elements of an SVG are named after it.
        lines: those without any value are left out.
        log: a logarithmic axis, where every value allows it.
    """
    lines = [line for line in lines if any(line.seeds)]
    width = _bin_width(lines)
    with style(name):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        axes = figure.add_subplot()
        lowest = math.inf
        for line in lines:
            seeds = [_binned(curve, width) for curve in line.seeds if curve]
            shared = sorted(set(seeds[0]).intersection(*seeds[1:]))
            means = [sum(seed[step] for seed in seeds) / len(seeds) for step in shared]
            dashes = "--" if line.dashed else "-"
            if len(seeds) > 1:
                for seed in seeds:
                    axes.plot(list(seed), list(seed.values()), dashes, color=line.color, lw=0.8, alpha=0.35)
            mark = "o" if len(shared) == 1 else None  # a line of one point would not be seen
            axes.plot(shared, means, dashes, marker=mark, color=line.color, lw=1.6, label=line.name)
            lowest = min(lowest, *(value for seed in seeds for value in seed.values()))
        if log and 0 < lowest < math.inf:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.axhline(0, color=INK, lw=0.8, alpha=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        if lines:
            axes.legend(fontsize=8, ncols=2 if len(lines) > 3 else 1)
        return inline_svg(figure, name)


def _bin_width(lines: Sequence[Line]) -> int:
    last = max((step for line in lines for curve in line.seeds for step, _ in curve), default=0)
    return max(1, math.ceil((last + 1) / POINTS))


def _binned(curve: Curve, width: int) -> dict[int, float]:
    """First step of each run of `width` steps -> the mean over it."""
    bins: dict[int, list[float]] = {}
    for step, value in curve:
        bins.setdefault(step // width * width, []).append(value)
    return {step: sum(values) / len(values) for step, values in sorted(bins.items())}
