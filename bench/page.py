"""The report of several subjects, the first of which is the baseline: report.html, report.md, report.json.

The page loads nothing and asks no network. Every text passes through jinja2's escaping or is put in the page
by `textContent`: what a model answered is shown, never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.cost_rows import cost_rows
from bench.differences import Compared, compare, points, smallest
from bench.frontier import COSTS, frontier, mean_scores
from bench.gate import Gate
from bench.plots import plot
from bench.pull_request import as_markdown
from bench.report import Report, percent, read_report
from bench.report_json import as_data
from bench.samples import NO_SAMPLES, Opened, Samples, collect
from genrecal.core.errors import BenchError
from genrecal.core.files import write_json, write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")
PAGE, MARKDOWN, DATA = "report.html", "report.md", "report.json"
MOST_BYTES = 5_000_000
# For the frame of the samples, which the page without them lacks.
FRAME_BYTES = 50_000


def open_benches(folders: Sequence[Path]) -> list[Opened]:
    """Read bench folders; subjects of one name are told apart by a number.

    Raises:
        BenchError: a folder holds no bench, or is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise BenchError("a folder is named twice", where="report")
    return told_apart([Opened(folder=folder, report=read_report(folder)) for folder in folders])


def told_apart(opened: Sequence[Opened]) -> list[Opened]:
    """The same with names that differ."""
    found: dict[str, Opened] = {}
    for one in opened:
        name, copy = one.report.name, 2
        while name in found:
            name, copy = f"{one.report.name} ({copy})", copy + 1
        found[name] = replace(one, report=replace(one.report, name=name))
    return list(found.values())


def write_page(opened: Sequence[Opened], output: Path, *, gate: Gate | None = None) -> dict[str, Any]:
    """Write report.json, report.md and report.html into `output`.

    Args:
        opened: the subjects, the baseline first; their names differ.
        output: a folder.
        gate: its verdict on the last one, where it was asked for one.

    Returns: what report.json holds.

    Raises:
        BenchError: two of them cannot be compared, or the page grew beyond its limit.
    """
    reports = [one.report for one in opened]
    compared = {report.name: compare(report, reports[0], whole=False) for report in reports[1:]}
    rest = len(render(reports, compared, gate, NO_SAMPLES).encode())
    samples = collect(opened, room=max(0, MOST_BYTES - FRAME_BYTES - rest))
    data = as_data(reports, compared, gate, samples)
    page = render(reports, compared, gate, samples)
    if len(page.encode()) > MOST_BYTES:
        raise BenchError(
            f"the page has {len(page.encode()):,} bytes", where=output / PAGE, fix="Name fewer benches"
        )
    write_text(output / PAGE, page)
    write_text(output / MARKDOWN, as_markdown(reports, compared, gate))
    write_json(output / DATA, data)
    return data


def render(
    reports: Sequence[Report],
    compared: dict[str, Compared],
    gate: Gate | None,
    samples: Samples,
) -> str:
    """report.html."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "percent": percent, "smallest": smallest}
    means, shared = mean_scores(reports)
    on_plots = {cost.title: frontier(reports, cost, means) for cost in COSTS.values()}
    titles = _titles(reports)
    return environment.get_template(TEMPLATE.name).render(
        names=[report.name for report in reports],
        reports=reports,
        titles=titles,
        compared=compared,
        gate=gate,
        plots=[plot(on_plots[cost.title], cost) for cost in COSTS.values() if on_plots[cost.title]],
        unknown_costs=[title for title, found in on_plots.items() if not found],
        shared=[titles[key] for key in shared],
        costs=[(report.name, cost_rows(report)) for report in reports],
        groups=_groups(reports),
        samples=samples,
        viewer={
            "names": [report.name for report in reports],
            "titles": titles,
            "samples": samples.samples,
            "images": dict(samples.images),
        },
    )


def _titles(reports: Sequence[Report]) -> dict[str, str]:
    return {key: result.score.title for report in reports for key, result in report.results.items()}


def _groups(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """For each benchmark and kind of group, its groups with every subject's score."""
    found = []
    for key, title in _titles(reports).items():
        kinds = dict.fromkeys(
            kind for report in reports if key in report.results for kind in report.results[key].score.groups
        )
        for kind in kinds:
            members: dict[str, dict[str, Any]] = {}
            for report in reports:
                if key not in report.results:
                    continue
                for group, value in report.results[key].score.groups.get(kind, {}).items():
                    row = members.setdefault(group, {"n": value.n, "scores": {}})
                    row["scores"][report.name] = value.score
            if len(members) > 1:
                found.append({"title": title, "kind": kind, "members": members})
    return found
