"""MathVista: from a reply to an extraction, and from an extraction to an answer of the wanted type.

reply -> a choice, a number, or an LLM's extraction -> normalised by type -> compared as strings
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_LETTER = re.compile(r"\(([a-zA-Z])\)")


def extract(reply: str, facts: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    """What code can read of a reply; None where the official code asks an LLM.

    Args:
        reply: raw.
        facts: question_type and answer_type.
        choices: the options' texts; empty where there are none.
    """
    if reply == "" or (facts["question_type"] == "multi_choice" and reply in choices):
        return reply
    try:
        if facts["answer_type"] == "integer":
            return str(int(reply))
        if facts["answer_type"] == "float":
            return str(float(reply))
    except ValueError:
        pass
    return None


def normalise(extraction: str, facts: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    """An extraction as an answer; None where it is none.

    Of a choice the first letter in brackets counts, then a letter alone; else the choice with the fewest
    edits between, so that an empty extraction is a guess. `precision` is the number of decimals.
    """
    if facts["question_type"] == "multi_choice":
        extraction = extraction.strip()
        letters = _LETTER.findall(extraction)
        letter = letters[0].upper() if letters else extraction
        if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
            return choices[ord(letter) - ord("A")]
        return min(choices, key=lambda choice: edits(letter, choice))
    try:
        if facts["answer_type"] == "integer":
            return str(int(float(extraction)))
        if facts["answer_type"] == "float":
            return str(round(float(extraction), int(facts["precision"])))
    except (ValueError, OverflowError):
        return None
    return extraction


def edits(one: str, other: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions, each counts one."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, start=1):
        above, row = row, [place]
        for column, wanted in enumerate(other, start=1):
            row.append(min(above[column] + 1, row[column - 1] + 1, above[column - 1] + (letter != wanted)))
    return row[-1]
