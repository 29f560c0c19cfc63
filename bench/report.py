"""Several subjects side by side: rows of plain strings that the console, Markdown and HTML all draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.part import part_text
from bench.perf import Perf, perf_from_json
from bench.stats import Interval
from bench.types import Facts, Group, Score
from genrecal.core.console import console
from genrecal.core.errors import BenchError, GenrecalError
from genrecal.core.files import read_json, write_text

NO_FIGURE = "-"
LOG_WIDTH = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A score with the label that it must never be shown without."""

    score: Score
    interval: Interval | None  # 95%, over questions
    source: str  # the set's file or folder
    data_sha256: str
    prompt_sha256: str
    generation: Mapping[str, Any]
    versions: Mapping[str, str]
    answer_tokens: float  # mean
    clusters: Mapping[str, str] = field(default_factory=dict)  # question -> cluster of a shared image
    path: str = ""  # of the set, absolute: where the questions are read again to be shown
    weights: Mapping[str, float] = field(default_factory=dict)  # question -> weight; empty: all alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One subject's results: what bench.json holds."""

    name: str
    spec: Mapping[str, Any]
    facts: Facts
    fingerprint: str
    results: Mapping[str, Result]
    perf: Perf | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of strings: one row for each subject, and notes that belong under it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def read_report(path: Path) -> Report:
    """Read bench.json, or the folder that holds it.

    Raises:
        BenchError: there is none, or it is of another form.
    """
    file = path / "bench.json" if path.is_dir() else path
    try:
        content = read_json(file)
        results = {name: _result(one) for name, one in content["results"].items()}
        return Report(
            **{
                **content,
                "facts": Facts(**content["facts"]),
                "results": results,
                "perf": perf_from_json(content["perf"]) if content["perf"] else None,
            }
        )
    except (GenrecalError, KeyError, TypeError, AttributeError) as error:
        what = error.what if isinstance(error, GenrecalError) else f"is no bench report ({error})"
        raise BenchError(what, where=file, fix="Run genrecal bench first") from None


def grid(reports: Sequence[Report]) -> Grid:
    """The reports as rows; a column for each benchmark that any of them has, by its title.

    Raises:
        BenchError: two reports have a column of one title but other questions, prompts or judges.
    """
    if not reports:
        raise BenchError("there are no results to show", where="report")
    _check_comparable(reports)
    titles = list(dict.fromkeys(result.score.title for one in reports for result in one.results.values()))
    rows, notes = [], []
    for report in reports:
        by_title = {result.score.title: result for result in report.results.values()}
        perf = report.perf
        rows.append(
            (
                report.name,
                *(_cell(by_title.get(title)) for title in titles),
                f"{report.facts.weights_bytes / 1e6:.2f}" if report.facts.weights_bytes else NO_FIGURE,
                report.facts.precision,
                f"{perf.first_token_s_p50 * 1e3:.0f}" if perf else NO_FIGURE,
                f"{perf.tokens_per_s_p50:.0f}" if perf and perf.tokens_per_s_p50 else NO_FIGURE,
                f"{perf.peak_memory_bytes / 1e6:.0f}" if perf and perf.peak_memory_bytes else NO_FIGURE,
            )
        )
        notes += [note for title, result in by_title.items() for note in _notes(report.name, title, result)]
    columns = (
        "subject",
        *(f"{title} %" for title in titles),
        "weights on disk MB",
        "precision",
        "first token ms",
        "tokens/s",
        "peak memory MB",
    )
    return Grid(columns=columns, rows=tuple(rows), notes=tuple(notes))


def print_reports(reports: Sequence[Report]) -> None:
    """Print the grid, or one subject's figures under each other; scores in percent, with 95% intervals."""
    shown = grid(reports)
    columns, rows = shown.columns, shown.rows
    if len(reports) == 1:
        (figures,) = shown.rows
        columns, rows = ("subject", figures[0]), tuple(zip(columns[1:], figures[1:], strict=True))
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if place else "left")
    for row in rows:
        # As Text, for a name in square brackets is no markup.
        table.add_row(*(Text(cell) for cell in row))
    # A log has no width; the eighty columns that are assumed for it would break every cell.
    target = console if console.is_terminal else Console(width=LOG_WIDTH, highlight=False)
    target.print(table)
    for note in shown.notes:
        target.print(Text(note))


def markdown(reports: Sequence[Report]) -> str:
    """The grid as a Markdown table, with the notes under it."""
    shown = grid(reports)
    aligned = ["---", *["---:"] * (len(shown.columns) - 1)]
    lines = [_line(shown.columns), _line(aligned), *(_line(row) for row in shown.rows)]
    if shown.notes:
        lines += ["", *(f"- {note}" for note in shown.notes)]
    return "\n".join(lines) + "\n"


def write_markdown(path: Path, reports: Sequence[Report]) -> None:
    write_text(path, markdown(reports))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cell(result: Result | None) -> str:
    if result is None:
        return NO_FIGURE
    if result.score.score is None:
        return "incomplete"
    text = percent(result.score.score)
    if result.interval is not None:
        text += f" [{percent(result.interval.low)}, {percent(result.interval.high)}]"
    return text


def _notes(name: str, title: str, result: Result) -> list[str]:
    """What was not asked, what the official code would have guessed, what a judge has not graded."""
    details = result.score.details
    found = [part_text(details)]
    if unparsed := details.get("unparsed_rows"):
        found.append(f"{unparsed} of {details['rows']} rows unparsed, counted wrong")
    if drawn := details.get("random_rows"):
        how = "drawn at random" if details["official_random"] else "unparsed, counted wrong"
        lucky = details["random_rows_right_by_luck"]
        found.append(f"{drawn} of {result.score.n} {how} (luck would get {lucky} right)")
    if ungraded := details.get("ungraded"):
        found.append(f"{ungraded} replies unscored, left out")
    return [f"{name}, {title}: {note}" for note in found if note]


def _check_comparable(reports: Sequence[Report]) -> None:
    seen: dict[str, tuple[str, Result]] = {}
    for report in reports:
        for result in report.results.values():
            name, first = seen.setdefault(result.score.title, (report.name, result))
            labels = (
                (first.data_sha256, result.data_sha256, "answered different questions"),
                (first.prompt_sha256, result.prompt_sha256, "were asked in different words"),
                (first.score.details.get("judge"), result.score.details.get("judge"), "had different judges"),
            )
            for one, other, what in labels:
                if one != other:
                    raise BenchError(
                        f"'{name}' and '{report.name}' {what}",
                        where=result.score.title,
                        fix="Compare runs of one test set, prompt and judge",
                    )


def _result(content: Mapping[str, Any]) -> Result:
    score = content["score"]
    groups = {
        kind: {name: Group(**group) for name, group in members.items()}
        for kind, members in score["groups"].items()
    }
    return Result(
        **{
            **content,
            "score": Score(**{**score, "groups": groups}),
            "interval": Interval(**content["interval"]) if content["interval"] else None,
        }
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
