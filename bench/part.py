"""A part of a test set for quick looks on the way: the same questions for every subject."""

from __future__ import annotations

from collections.abc import Sequence

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
