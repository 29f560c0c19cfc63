"""Which method serves which pair, found out from processors alone before anything is loaded (Figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from genrecal.core.console import console
from genrecal.core.errors import ConfigError
from genrecal.data.vocabulary import Kinship, kinship, shared_ids
from genrecal.models.image_limits import cuts_tiles, keeps_size
from genrecal.models.processors import load_processor
from genrecal.train.comparison import Comparison
from genrecal.train.settings import DataConfig, RunConfig
from genrecal.train.stages import METHODS, Stage


def refusal(method: str, found: Kinship, *, answer_only: bool) -> str | None:
    """Why `method` cannot serve a pair; None: it can."""
    if METHODS[method].needs != "token_types" or found.serves(answer_only=answer_only):
        return None
    if not found.same_tokenizer:
        return f"the tokenizers differ ({found.difference})"
    return f"the image tokens differ ({found.difference})"


def require_served(config: RunConfig, student: Any, teachers: Sequence[Any]) -> None:
    """Raise a ConfigError unless the run's method serves its pair.

    Args:
        config: the run.
        student: its processor.
        teachers: theirs.
    """
    if METHODS[config.method].needs != "token_types":
        return
    found = kinship(student, teachers[0])
    reason = refusal(config.method, found, answer_only=config.answer_only)
    if reason:
        # The answer-only variant would serve equal tokenizers.
        fix = "Set answer_only: true" if found.same_tokenizer else "Take genrecal, seqkd, uld or gold"
        raise ConfigError(f"{config.method} cannot serve this pair: {reason}", where="method", fix=fix)


def require_limits(data: DataConfig, processors: Sequence[Any]) -> None:
    """Raise a ConfigError where a limit on images is of no use to any model of the run."""
    image_processors = [processor.image_processor for processor in processors]
    for name, limit, serves in (
        ("max_tiles", data.max_tiles, cuts_tiles),
        ("max_pixels", data.max_pixels, keeps_size),
    ):
        if limit is not None and not any(serves(processor) for processor in image_processors):
            raise ConfigError("limits no model of this run", where=f"data.{name}", fix="Leave it out")


def comparison_settings(config: RunConfig, stage: Stage, student: Any, teachers: Sequence[Any]) -> Comparison:
    """What the comparison methods need to know about the pair, from its processors."""
    return Comparison(
        answer_only=config.answer_only,
        skew=config.objective.skew,
        image_token_id=student.tokenizer.convert_tokens_to_ids(student.image_token),
        shared_ids=shared_ids(student, teachers[0]) if "gold" in stage.losses else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """A teacher and a student, and what each method says of them; None: it serves them."""

    teacher: Path
    student: Path
    refusals: dict[str, str | None]  # by method; the answer-only variants end in †


def pair_table(teachers: Sequence[Path], students: Sequence[Path]) -> list[PairRow]:
    """Every teacher with every student (paper, Figure 8)."""
    processors = {folder: load_processor(folder) for folder in {*teachers, *students}}
    return [
        PairRow(
            teacher=teacher, student=student, refusals=_refusals(processors[student], processors[teacher])
        )
        for teacher in teachers
        for student in students
    ]


def _refusals(student: Any, teacher: Any) -> dict[str, str | None]:
    found = kinship(student, teacher)
    rows: dict[str, str | None] = {}
    for name, method in METHODS.items():
        if method.needs == "nothing":
            continue
        rows[name] = refusal(name, found, answer_only=False)
        if method.needs == "token_types":
            rows[f"{name}†"] = refusal(name, found, answer_only=True)
    return rows


def print_pairs(rows: Sequence[PairRow]) -> None:
    """One table with a line for each pair, and the reason of each refusal below it."""
    # Methods that need the same of a pair share a column.
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in rows[0].refusals:
        groups.setdefault((METHODS[name.rstrip("†")].needs, name.endswith("†")), []).append(name)
    table = Table("teacher", "student", *("\n".join(names) for names in groups.values()))
    for row in rows:
        marks = ["no" if row.refusals[names[0]] else "yes" for names in groups.values()]
        table.add_row(row.teacher.name, row.student.name, *marks)
    console.print(table)
    console.print("† with answer_only: true, where answer tokens alone are distilled (Appendix G)")
    for row in rows:
        reasons: dict[str, list[str]] = {}
        for name, reason in row.refusals.items():
            if reason:
                reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            console.print(f"{row.teacher.name} -> {row.student.name}: not {', '.join(names)}: {reason}")
