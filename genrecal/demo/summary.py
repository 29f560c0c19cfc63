"""What the figures of all seeds say: the rows of the one table and the lines under it.

The console and the report show the same cells and the same words; both are made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genrecal.core.console import console
from genrecal.core.errors import GenrecalError
from genrecal.core.files import read_json

Results = Mapping[str, Any]

NO_FIGURE = "-"
LOG_WIDTH = 180
BASELINES = {"sft": "SFT", "sft-teacher": "SFT on the teacher's answers"}
# The stages in which the Recalibrator trains.
READING_STAGES = ("recalibrate", "distill")
FIGURES = ("mean", "parameters", "weights", "tokens/s", "first token", "peak memory")
KEYS = (
    *("seed", "versions", "seconds", "labels", "subjects"),
    *("gain", "agreement", "curves", "reading", "samples"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of the table, and how far it may be off."""

    value: str
    spread: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.spread}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One subject: a cell for each benchmark, then one for each of FIGURES."""

    key: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whole answers that int8 and fp32 builds share."""

    name: str  # a column's title, or "long answers"
    share: float  # 0 to 1
    questions: int


def read_results(folders: Sequence[Path]) -> list[Results]:
    """The results of every seed.

    Raises:
        GenrecalError: a results.json is missing or has another form, or two seeds compare other subjects.
    """
    if not folders:
        raise GenrecalError("there are no seeds to report", where="demo", fix="Ask for at least one")
    found: list[Results] = []
    again = "Remove it and run genrecal demo again"
    for folder in folders:
        path = folder / "results.json"
        results = read_json(path)
        missing = [key for key in KEYS if not isinstance(results, dict) or key not in results]
        if missing:
            raise GenrecalError(f"is no result of a demo: it lacks '{missing[0]}'", where=path, fix=again)
        if found and _columns(results) != _columns(found[0]):
            raise GenrecalError(f"has other rows or columns than {folders[0]}", where=path, fix=again)
        found.append(results)
    return found


def titles(results: Sequence[Results]) -> dict[str, str]:
    """Test set -> the title of its column."""
    first = next(iter(results[0]["subjects"].values()))
    return {name: score["title"] for name, score in first["scores"].items()}


def table_rows(results: Sequence[Results]) -> list[Row]:
    """One row for each subject, over all `results`: means of scores, medians of speed and memory."""
    rows = []
    for key, first in results[0]["subjects"].items():
        seeds = [result["subjects"][key] for result in results]
        scores = (score_cell([one["scores"][name] for one in seeds]) for name in titles(results))
        cells = (
            *scores,
            _spread_cell([100 * one["mean"] for one in seeds]),
            Cell(value=f"{first['parameters'] / 1e6:.3g} M" if first["parameters"] else NO_FIGURE),
            _middle(seeds, "weights_bytes", 1e-6, ".2f", " MB"),
            _middle(seeds, "tokens_per_s", 1.0, ".0f", ""),
            _middle(seeds, "first_token_s", 1e3, ".0f", " ms"),
            _middle(seeds, "peak_memory_bytes", 1e-6, ".0f", " MB"),
        )
        rows.append(Row(key=key, label=first["label"], cells=cells))
    return rows


def score_cell(scores: Sequence[Mapping[str, Any]]) -> Cell:
    """In percent. One seed: the score and its interval; several: mean and standard deviation."""
    if any(score["score"] is None for score in scores):
        return Cell(value="incomplete")
    if len(scores) > 1:
        return _spread_cell([100 * score["score"] for score in scores])
    (score,) = scores
    interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]" if score["low"] is not None else ""
    return Cell(value=f"{100 * score['score']:.1f}", spread=interval)


def spread_meaning(results: Sequence[Results]) -> str:
    """What stands beside a score."""
    if len(results) == 1:
        return "Scores in percent, with 95% intervals over the questions."
    return f"Scores in percent: mean ± standard deviation over {len(results)} seeds."


def summary_lines(results: Sequence[Results]) -> list[str]:
    """What the figures say, in words; every number is one of the results'."""
    lines = [_verdict(results, key, name) for key, name in BASELINES.items()]
    lines += [_reading(results, stage) for stage in READING_STAGES]
    shares = "; ".join(f"{one.name}: {one.share:.1%}" for one in agreement(results))
    right = {key: _mean([result["labels"] for result in results], key) for key in ("given", "teacher")}
    total = sum(sum(result["seconds"].values()) for result in results)
    return [
        *lines,
        f"Whole answers that the int8 build shares with the fp32 build: {shares}",
        f"Right answers in the distillation set: {right['given']:.1%} of those given,"
        f" {right['teacher']:.1%} of the teacher's own",
        f"Time: {total / 60:.1f} minutes",
    ]


def agreement(results: Sequence[Results]) -> list[Agreement]:
    """How often int8 and fp32 builds gave the same whole answer, over the questions of all seeds."""
    names = dict.fromkeys(name for result in results for name in result["agreement"])
    found = []
    for name in names:
        seeds = [result["agreement"][name] for result in results if name in result["agreement"]]
        questions = sum(one["n"] for one in seeds)
        share = sum(one["share"] * one["n"] for one in seeds) / questions
        found.append(Agreement(name=titles(results).get(name, name), share=share, questions=questions))
    return found


def print_summary(folders: list[Path]) -> None:
    """The table at the end of a demo: means over the seeds, and the spread where there are several."""
    results = read_results(folders)
    table = Table(title=spread_meaning(results))
    for place, column in enumerate(("", *titles(results).values(), *FIGURES)):
        table.add_column(Text(column), justify="right" if place else "left")
    for row in table_rows(results):
        # As Text, for an interval in square brackets is no markup.
        table.add_row(Text(row.label), *(Text(str(cell)) for cell in row.cells))
    # A log has no width; the eighty columns that are assumed for it would break every cell.
    target = console if console.is_terminal else Console(width=LOG_WIDTH, highlight=False)
    target.print(table)
    for line in summary_lines(results):
        target.print(Text(line))


def _columns(results: Results) -> list[Any]:
    return [(key, list(row["scores"])) for key, row in results["subjects"].items()]


def _verdict(results: Sequence[Results], key: str, name: str) -> str:
    gains = [result["gain"][key] for result in results]
    mean = 100 * _mean(gains, "difference")
    by_seed = ", ".join(
        f"{100 * gain['difference']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
        for gain in gains
    )
    many = len(gains) > 1
    # A mean above zero beats nothing while the questions cannot tell it from zero.
    above = all(gain["low"] > 0 for gain in gains)
    line = f"GenRecal {'beats' if above else 'does not beat'} {name}: "
    line += f"{mean:+.1f} points on average; by seed {by_seed}" if many else f"{by_seed} points"
    line += ", paired over all questions"
    if above or all(gain["high"] < 0 for gain in gains):
        return line
    if many:
        return f"{line}; not every seed's interval lies on the same side of zero"
    return f"{line}; the interval holds zero, so these questions cannot tell"


def _reading(results: Sequence[Results], stage: str) -> str:
    last = [
        rows[-1]
        for result in results
        if (rows := [row for row in result["reading"] if row["stage"] == stage])
    ]
    start = f"Does the Recalibrator read the student? End of {stage}: "
    if not last:
        return start + "not measured"
    return (
        f"{start}gradient at z_q {_mean(last, 'grad_distill'):.3g} by distillation,"
        f" {_mean(last, 'grad_sft'):.3g} by SFT; KL rise with shuffled z_q"
        f" {_mean(last, 'kl_rise_first'):+.3f} nats at the first answer token,"
        f" {_mean(last, 'kl_rise_later'):+.4f} at later ones"
    )


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """NaN, and shown as such, where no row has the figure."""
    values = [row[key] for row in rows if row[key] is not None]
    return float(np.mean(values)) if values else float("nan")


def _spread_cell(values: Sequence[float]) -> Cell:
    spread = f"± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return Cell(value=f"{np.mean(values):.1f}", spread=spread)


def _middle(rows: Sequence[Mapping[str, Any]], key: str, scale: float, form: str, unit: str) -> Cell:
    values = [row[key] for row in rows if row[key] is not None]
    return Cell(value=f"{scale * float(np.median(values)):{form}}{unit}" if values else NO_FIGURE)
