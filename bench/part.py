"""A part of a test set for quick looks on the way: the same questions for every subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.circular import question_of


def part_of(name: str, questions: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most `limit` questions, evenly spaced over the file, as files are sorted by category.

    A CircularEval group is one question, and stays whole.

    Args:
        name: the set's name: mmb, mmmu or mmvet.
        questions: what its `load` gave.
        limit: None: all of them.
    """
    if limit is None:
        return questions
    keys = [question_of(one.index) if name == "mmb" else one.id for one in questions]
    groups = list(dict.fromkeys(keys))
    count = min(limit, len(groups))
    kept = {groups[place * len(groups) // count] for place in range(count)}
    return [one for key, one in zip(keys, questions, strict=True) if key in kept]
