"""A part of a test set for quick looks on the way: the same questions for every subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.task import Row


def part_of(rows: Sequence[Row], limit: int | None) -> Sequence[Row]:
    """At most `limit` questions, evenly spaced over the file, as files are sorted by category.

    A CircularEval group is one question, and stays whole.

    Args:
        rows: what a task's `load` gave.
        limit: None: all of them.
    """
    if limit is None:
        return rows
    questions = list(dict.fromkeys(row.question_id for row in rows))
    count = min(limit, len(questions))
    kept = {questions[place * len(questions) // count] for place in range(count)}
    return [row for row in rows if row.question_id in kept]


def part_details(part: Sequence[Row], whole: Sequence[Row]) -> dict[str, Any]:
    """What a score must say where its questions are a part of the set; nothing where they are all of it."""
    asked, there = ({row.question_id for row in rows} for rows in (part, whole))
    return {"part": {"questions": len(asked), "of": len(there)}} if len(asked) < len(there) else {}


def part_text(details: Mapping[str, Any]) -> str | None:
    """The same for a person; None where the score is over the whole set."""
    part = details.get("part")
    return f"{part['questions']} of {part['of']} questions (--limit)" if part else None
