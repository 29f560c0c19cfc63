"""CircularEval's rotations: a question is asked once for each turn of its options, and all must be right.

A B C D        turn 1: the content of A moves to D, of B to A, of C to B, of D to C
row q     ->   row q + 10^6, q + 2 * 10^6, ...
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from genrecal.core.errors import BenchError

OFFSET = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """The options of a question after some turns, and where its answer went."""

    options: Mapping[str, str]  # letter -> text
    answer: str


def question_of(index: int) -> int:
    """The question that a row belongs to: the index of its main row."""
    return index % OFFSET


def is_main(index: int) -> bool:
    return index == question_of(index)


def rotate(options: Mapping[str, str], answer: str, turns: int) -> Rotation:
    """Turn the contents of the options `turns` places towards the front, the answer with them."""
    letters = list(options)
    moved = {letter: letters[(place - turns) % len(letters)] for place, letter in enumerate(letters)}
    contents = {moved[letter]: text for letter, text in options.items()}
    return Rotation(options={letter: contents[letter] for letter in letters}, answer=moved[answer])


def cannot_rotate(options: Mapping[str, str]) -> bool:
    """Whether the official tool leaves a question unrotated.

    It does where an option names two or more of the option letters ("Both A and B"), or where an option is
    itself a letter or a run of the alphabet: moved about, such options change their meaning.
    """
    for text in options.values():
        words = "".join(c if c in string.ascii_letters else " " for c in text).split()
        if len(options.keys() & set(words)) > 1:
            return True
    return any(text in string.ascii_uppercase for text in options.values())


def check_groups(rows: Iterable[tuple[int, Mapping[str, str]]], *, where: str) -> None:
    """Check that every question has its main row and each of its rotations, once.

    Args:
        rows: index and options of every row.
        where: the file, for the error.

    Raises:
        BenchError: a rotation is missing or there is one too many: the question could not be scored as
            CircularEval scores it.
    """
    turns: dict[int, set[int]] = {}
    options_of: dict[int, Mapping[str, str]] = {}
    for index, options in rows:
        turns.setdefault(question_of(index), set()).add(index // OFFSET)
        if is_main(index):
            options_of[index] = options
    for question, found in turns.items():
        if question not in options_of:
            raise BenchError(f"question {question} has rotations but no main row", where=where)
        options = options_of[question]
        if found == set(range(len(options))) or (found == {0} and cannot_rotate(options)):
            continue
        raise BenchError(
            f"question {question} has rows for turns {sorted(found)} but {len(options)} options",
            where=where,
            fix="CircularEval needs every rotation; use the whole file, or one with main rows alone",
        )
