"""Figure 10: the student's scores at every 20% of each stage, a line for each part of the data left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from genrecal.figures.canvas import INK, MARKERS, color_of, dash_of, entitle, legend_below, panels
from genrecal.figures.runs import Missing, Run, read_each, read_points, title_of
from genrecal.figures.scores import questions

# Sets that a run was scored on only on the way have their own names.
TITLES = {"mmb": "MMB", "mmmu": "MMMU", "mmvet": "MM-Vet"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One run on one benchmark: (stage number - 1 + share of the stage, percent right)."""

    benchmark: str
    run: str
    seed: int
    points: tuple[tuple[float, float], ...]
    unchanged: tuple[float, ...]  # where the stage left the student as it was
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    trends: tuple[Trend, ...]
    stages: tuple[str, ...]
    left_out: str


def read(runs: Sequence[Run]) -> Progress:
    points = read_each(runs, lambda run: read_points(run) or None)
    found = [(run, points.values[run.folder]) for run in points.runs]
    # Methods of fewer stages are set to end with the others: the stage that they end with is the same.
    most = max((_last(records) for _, records in found), default=0)
    trends = [trend for run, records in found for trend in _trends(run, records, most - _last(records))]
    if not trends:
        raise Missing("no point of any run has a score", fix="Let the run finish")
    stages: list[dict[str, None]] = [{} for _ in range(most)]  # as sets that keep their order
    for _, records in found:
        for record in records:
            stages[record["number"] + most - _last(records) - 1][record["stage"]] = None
    return Progress(
        trends=tuple(trends), stages=tuple(" or ".join(names) for names in stages), left_out=points.left_out
    )


def draw(data: Progress) -> Figure:
    benchmarks = list(dict.fromkeys(trend.benchmark for trend in data.trends))
    names = list(dict.fromkeys(trend.run for trend in data.trends))
    figure, axes = panels(len(benchmarks), columns=3, width_in=3.9, height_in=3.0)
    for benchmark, one in zip(benchmarks, axes, strict=True):
        for place, name in enumerate(names):
            trends = [trend for trend in data.trends if (trend.benchmark, trend.run) == (benchmark, name)]
            color, dash = color_of(place), dash_of(place)
            marker = MARKERS[place % len(MARKERS)]
            if len(trends) > 1:
                for trend in trends:
                    one.plot(*zip(*trend.points, strict=True), dash, color=color, lw=0.7, alpha=0.35)
            if trends:
                line = _mean(trends)
                one.plot(*zip(*line, strict=True), dash, color=color, marker=marker, ms=4, lw=1.6, label=name)
        for boundary in range(1, len(data.stages)):
            one.axvline(boundary, color=INK, lw=0.8, alpha=0.35)
        entitle(one, benchmark)
        one.set_ylabel("score, %")
        one.set_xlim(0, len(data.stages) + 0.05)
        one.grid(axis="x", visible=False)
        # A label in the middle of each stage, a tick at each point.
        labels = [stage.replace(" or ", "\n") for stage in data.stages]
        one.set_xticks([place + 0.5 for place in range(len(labels))], labels)
        one.tick_params(axis="x", which="major", length=0)
        places = sorted({place for trend in data.trends for place, _ in trend.points})
        one.xaxis.set_minor_locator(FixedLocator(places))
        one.xaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, axes)
    return figure


def caption(data: Progress) -> str:
    counts = {trend.benchmark: trend.n for trend in data.trends}
    seeds = len({trend.seed for trend in data.trends})
    count = max(len(trend.points) for trend in data.trends)
    text = f"Scores on the way, {count} points over the stages {', '.join(data.stages)} (ticks)."
    if any(trend.unchanged for trend in data.trends):
        text += " A stage that does not train the student shows the student as it was."
    if seeds > 1:
        text += f" Bold: mean over {seeds} seeds; faint: each seed."
    return (
        f"{text} {questions(counts)}; one question is {100 / min(counts.values()):.2g} points.{data.left_out}"
    )


def table(data: Progress) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": trend.benchmark,
            "run": trend.run,
            "seed": trend.seed,
            "stage": data.stages[min(int(place - 1e-6), len(data.stages) - 1)],
            "place": place,
            "score_percent": value,
            "unchanged": place in trend.unchanged,
            "questions": trend.n,
        }
        for trend in data.trends
        for place, value in trend.points
    ]


def _trends(run: Run, records: Sequence[dict[str, Any]], offset: int) -> list[Trend]:
    titles = TITLES | title_of([report for report in (run.after, run.before) if report])
    trends = []
    for name in dict.fromkeys(name for record in records for name in record["scores"]):
        of_set = [record for record in records if record["scores"].get(name) is not None]
        if of_set:
            trends.append(
                Trend(
                    benchmark=titles.get(name, name),
                    run=run.name(),
                    seed=run.seed,
                    points=tuple((_place(one) + offset, 100 * one["scores"][name]) for one in of_set),
                    unchanged=tuple(_place(one) + offset for one in of_set if one.get("unchanged")),
                    n=of_set[0]["questions"][name],
                )
            )
    return trends


def _last(records: Sequence[dict[str, Any]]) -> int:
    return int(max(record["number"] for record in records))


def _place(record: dict[str, Any]) -> float:
    return float(record["number"]) - 1 + record["percent"] / 100


def _mean(trends: Sequence[Trend]) -> list[tuple[float, float]]:
    """The mean over seeds, at the points that all of them have."""
    lines = [dict(trend.points) for trend in trends]
    shared = sorted(set(lines[0]).intersection(*lines[1:]))
    return [(place, sum(line[place] for line in lines) / len(lines)) for place in shared]
