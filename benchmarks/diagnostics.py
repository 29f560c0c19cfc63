"""Tables that say why: what the Recalibrator read, where gradients went, what the last stage changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers import TOKENS
from benchmarks.compare import SETS, Row, read_row
from benchmarks.gradients import NAME as GRADIENTS
from benchmarks.gradients import POSITIONS
from benchmarks.settings import Plan
from genrecal.core.files import read_json

NOT_RUN = "Not run yet."


def reading_table(plan: Plan, results: Path) -> str:
    """What stage 2's last probes saw, mean over seeds, of every row with a Recalibrator."""
    head = ["", "reads the student for", "KL rise first", "later", "gradient first", "later", "SFT", "seeds"]
    lines = []
    for row in _rows(plan, results):
        stages = [cell["stages"].get("distill") for cell in row.cells.values()]
        # A stage without another sample's features to swap in has no answer to the question.
        probed = [stage for stage in stages if stage and stage["verdict"] and stage["verdict"]["reads"]]
        if probed:
            last = [stage["readings"][-1] for stage in probed]
            said = sorted({stage["verdict"]["reads"] for stage in probed})
            lines.append(
                [
                    _title(plan, row),
                    " / ".join(said),
                    *(_mean([stage["verdict"][f"kl_rise_{part}"] for stage in probed], 2) for part in TOKENS),
                    *(_mean([reading[f"grad_distill_{part}"] for reading in last], 4) for part in TOKENS),
                    _mean([reading["grad_sft"] for reading in last], 4),
                    str(len(probed)),
                ]
            )
    return table(head, lines)


def between_table(plan: Plan, results: Path) -> str:
    """The student before the last stage and after it, mean over the seeds that recorded both."""
    head = [
        "",
        "mean before",
        "after",
        *(f"{part} before" for part in TOKENS),
        *(f"{part} after" for part in TOKENS),
        "seeds",
    ]
    lines = []
    for row in _rows(plan, results):
        pairs = [
            (scores, cell)
            for cell in row.cells.values()
            for scores in [_before_last(cell)]
            if scores is not None
        ]
        if pairs:
            lines.append(
                [
                    _title(plan, row),
                    _percent([np.mean([before[name] for name in SETS]) for before, _ in pairs]),
                    _percent([np.mean([cell["scores"][name] for name in SETS]) for _, cell in pairs]),
                    *(_percent([before[part] for before, _ in pairs]) for part in TOKENS),
                    *(_percent([_grade(cell, part) for _, cell in pairs]) for part in TOKENS),
                    str(len(pairs)),
                ]
            )
    return table(head, lines)


def gradients_table(plan: Plan, results: Path) -> str:
    """Percent of the squared gradient at the student's features by position; cosines with the SFT loss's."""
    path = results / GRADIENTS
    if not path.is_file():
        return NOT_RUN + "\n"
    measured: dict[str, Any] = read_json(path)
    lines = []
    for name, found in measured.items():
        title = plan.variants[name.partition("/")[2]].title
        shares = [f"{100 * found[position]['distill']:.1f}" for position in POSITIONS]
        cosines = [
            f"{found[position]['cosine']:.2f}" if found[position]["distill"] else "-"
            for position in POSITIONS[-2:]
        ]
        lines.append([title, *shares, *cosines])
    if measured:
        sft = next(iter(measured.values()))
        lines.append(
            ["the SFT loss", *(f"{100 * sft[position]['sft']:.1f}" for position in POSITIONS), "", ""]
        )
    return table(["gradient of", *POSITIONS, "cosine, last of the question", "cosine, answer"], lines)


def table(head: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return NOT_RUN + "\n"
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def _rows(plan: Plan, results: Path) -> list[Row]:
    names = dict.fromkeys(row for suite in plan.suites.values() for row in suite.rows)
    return [row for row in (read_row(results, name) for name in names) if row.cells]


def _title(plan: Plan, row: Row) -> str:
    setting, _, variant = row.name.partition("/")
    return f"{plan.variants[variant].title} ({setting})"


def _before_last(cell: dict[str, Any]) -> dict[str, float] | None:
    found = [stage["scores_after"] for stage in cell["stages"].values() if "scores_after" in stage]
    return found[-1] if found else None


def _grade(cell: dict[str, Any], part: str) -> float:
    return float(np.mean([int(grade) for grade in cell["grades"][part].split()])) / 100


def _percent(values: list[Any]) -> str:
    return f"{100 * float(np.mean(values)):.1f}"


def _mean(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if known else "-"
