"""`genrecal leaderboard`: runs in one table beside all rows of the paper's Tables 1 to 4 and Appendix G.

    bench folders + paper_scores.json -> Entry for each row -> Markdown or JSON; the runs' pairs are marked

The paper names neither prompt nor version nor judge of its figures, so rows stand side by side and nothing is
computed across them. A run's score that plainly is of another kind (another rule, the offline judge, a part
of the set) has no cell in the table and is named below it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bench.judge import OfflineJudge
from bench.part import part_text
from bench.report import Report, read_report
from bench.task import OFFICIAL
from bench.types import Score
from genrecal.core.errors import BenchError
from genrecal.core.files import read_json, write_text

PAPER = Path(__file__).with_name("paper_scores.json")
RUN_CONFIG = "config.yaml"
# The paper's columns, and the benchmarks whose scores are of that kind.
COLUMNS = {
    "MMB": ("mmb", "mmb_v11"),
    "MMB-CN": ("mmb_cn", "mmb_cn_v11"),
    "MM-Vet": ("mmvet",),
    "MM-Vet-v2": ("mmvet_v2",),
    "MMMU": ("mmmu",),
    "MMMU-Pro": ("mmmu_pro",),
    "MMStar": ("mmstar",),
    "AI2D": ("ai2d",),
    "ChartQA": ("chartqa",),
    "SEED-2-Plus": ("seed_bench_2_plus",),
    "MathVista": ("mathvista",),
    "BLINK": ("blink",),
    "RWQA": ("realworldqa",),
}
# Names of checkpoints that the paper shortens.
SHORTENED = {"nvlmd72b": "nvlm72b", "internvl2llama376b": "internvl276b"}
MARK = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the table; scores in percent."""

    source: str  # run, or a table of the paper
    name: str
    student: str | None
    teacher: str | None
    method: str | None
    scores: Mapping[str, float]  # column -> percent; one that is missing was not measured
    same_pair: bool = False  # of the paper: the student and teacher of one of the runs
    notes: tuple[str, ...] = ()


@cache
def paper_entries() -> tuple[Entry, ...]:
    """Every row of the paper's Tables 1 to 4 and Appendix G, in their order."""
    return tuple(
        Entry(
            source=table["table"],
            name=name,
            student=student,
            teacher=teacher,
            method=method,
            scores={
                column: value
                for column, value in zip(table["columns"], values, strict=True)
                if value is not None
            },
        )
        for table in read_json(PAPER)["tables"]
        for name, student, teacher, method, *values in table["rows"]
    )


def leaderboard(reports: Sequence[Report], pairs: Sequence[Mapping[str, str | None]]) -> list[Entry]:
    """The runs, then the paper's rows; those of a run's pair are marked.

    Args:
        reports: what bench.json holds.
        pairs: student, teacher and method of each, as far as they are known.

    Raises:
        BenchError: there are no runs.
    """
    if not reports:
        raise BenchError("no runs are named", where="leaderboard", fix="Name folders of genrecal bench")
    runs = [_entry(report, pair) for report, pair in zip(reports, pairs, strict=True)]
    known = {(_plain(one.student), _plain(one.teacher)) for one in runs if one.student and one.teacher}
    paper = [
        Entry(**{**_fields(one), "same_pair": (_plain(one.student), _plain(one.teacher)) in known})
        for one in paper_entries()
    ]
    return [*runs, *paper]


def pair_of(report: Report) -> dict[str, str | None]:
    """Student, teacher and method of the run that a report's subject lies in, by the run's config.

    Nothing is known of a subject that lies in no run, of an endpoint, or of a run that was moved away.
    """
    path = report.spec.get("path")
    if path is None:
        return {}
    for folder in list(Path(path).resolve().parents)[:2]:
        if (folder / RUN_CONFIG).is_file():
            try:
                config = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise BenchError(f"cannot be read ({error})", where=folder / RUN_CONFIG) from None
            if not isinstance(config, dict):
                raise BenchError("is no run's config", where=folder / RUN_CONFIG)
            return {
                "student": _named(config.get("student")),
                "teacher": _named(config.get("teacher")),
                "method": config.get("method"),
            }
    return {}


def markdown(entries: Sequence[Entry]) -> str:
    """The table, a column for each benchmark that any row has; then what has no cell, and why."""
    columns = [name for name in COLUMNS if any(name in entry.scores for entry in entries)]
    lines = [_line(("source", "model", *columns)), _line(("---", "---", *["---:"] * len(columns)))]
    for entry in entries:
        cells = (f"{entry.scores[name]:.1f}" if name in entry.scores else "-" for name in columns)
        lines.append(_line((entry.source, f"{entry.name}{' ' + MARK if entry.same_pair else ''}", *cells)))
    lines += [
        "",
        f"{MARK} the student and teacher of a run above. Scores in percent. The paper names neither",
    ]
    lines += [
        "version, prompt nor judge of its figures: they stand beside the runs and are not compared with."
    ]
    lines += ["", *(f"- {entry.name}: {note}" for entry in entries for note in entry.notes)]
    lines += [f"- {table['table']}: {table['note']}" for table in read_json(PAPER)["tables"] if table["note"]]
    return "\n".join(lines) + "\n"


def leaderboard_command(
    runs: Sequence[Path], *, as_json: bool = False, output: Path | None = None
) -> list[Entry]:
    """Print the table, or write it to `output`.

    Args:
        runs: folders of `genrecal bench`, or their bench.json.
        as_json: a list of entries as JSON instead of Markdown.

    Raises:
        BenchError: a folder holds no report.
    """
    reports = [read_report(path) for path in runs]
    entries = leaderboard(reports, [pair_of(report) for report in reports])
    text = (
        json.dumps([_fields(entry) for entry in entries], indent=2, ensure_ascii=False) + "\n"
        if as_json
        else markdown(entries)
    )
    if output is not None:
        write_text(output, text)
    else:
        print(text, end="")
    return entries


def _entry(report: Report, pair: Mapping[str, str | None]) -> Entry:
    scores: dict[str, float] = {}
    notes = []
    for result in report.results.values():
        score = result.score
        column = next((name for name, of in COLUMNS.items() if score.benchmark in of), None)
        why = _why_apart(score, taken=column in scores)
        if column is None or why is not None or score.score is None:
            shown = "incomplete" if score.score is None else f"{100 * score.score:.1f}"
            notes.append(f"{score.title}: {shown}, {why or 'which the paper does not have'}")
            continue
        scores[column] = 100 * score.score
        judge = f", judge {score.judge['judge']}" if score.judge else ""
        if score.judge is None and "extraction" in score.details:
            judge = f", read by {score.details['extraction']}"
        notes.append(
            f"{column}: {score.title}, {score.version}, {score.split}, {score.n} questions, "
            f"generation: {score.generation}{judge}"
        )
    return Entry(
        source="run",
        name=report.name,
        student=pair.get("student"),
        teacher=pair.get("teacher"),
        method=pair.get("method"),
        scores=scores,
        notes=tuple(notes),
    )


def _why_apart(score: Score, *, taken: bool) -> str | None:
    """What makes a score another kind than the paper's column."""
    if part := part_text(score.details):
        return f"over {part}"
    if score.compat != OFFICIAL:
        return f"by the rule of {score.compat}"
    if score.judge is not None and score.judge["judge"] == OfflineJudge.facts["judge"]:
        return "graded by rules, not by a model"
    if score.score is None:
        return "too many replies are ungraded"
    return "beside another version in the table" if taken else None


def _fields(entry: Entry) -> dict[str, Any]:
    return asdict(entry)


def _named(value: Any) -> str | None:
    """The checkpoint's folder: configs name a path, or a mapping with one."""
    path = value.get("path") if isinstance(value, dict) else value
    return Path(path).name if isinstance(path, str) else None


def _plain(name: str | None) -> str:
    """A checkpoint's name without marks and endings: `InternVL2_5-78B` is the paper's `InternVL2.5-78B`."""
    letters = re.sub(r"[^a-z0-9]", "", (name or "").lower()).removesuffix("instruct").removesuffix("chat")
    return SHORTENED.get(letters, letters)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
