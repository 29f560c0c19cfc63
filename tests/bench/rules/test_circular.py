"""Rotations against a table worked out by hand, and what makes a group incomplete."""

from __future__ import annotations

import pytest

from bench.rules.circular import cannot_rotate, check_groups, question_of, rotate
from genrecal.core.errors import BenchError

OPTIONS = {"A": "w", "B": "x", "C": "y", "D": "z"}


@pytest.mark.parametrize(
    ("turns", "order", "answer"), [(0, "wxyz", "B"), (1, "xyzw", "A"), (2, "yzwx", "D"), (3, "zwxy", "C")]
)
def test_rotation(turns, order, answer):
    turned = rotate(OPTIONS, "B", turns)
    assert dict(turned.options) == dict(zip("ABCD", order, strict=True))
    assert turned.answer == answer
    assert turned.options[turned.answer] == "x"


def test_rows_of_one_question():
    assert [question_of(index) for index in (7, 1_000_007, 3_000_007)] == [7, 7, 7]


@pytest.mark.parametrize(
    ("options", "abnormal"),
    [
        (["both A and B", "x"], True),
        (["a cat", "A cat"], False),  # one letter word is an article as often as not
        (["A", "B"], True),
        (["ABC", "x"], True),
        (["both A and E", "x"], False),  # E is no option here
    ],
)
def test_options_that_the_official_tool_leaves_alone(options, abnormal):
    assert cannot_rotate(dict(zip("ABCD", options, strict=False))) == abnormal


@pytest.mark.parametrize("indices", [[1, 1_000_001], [1, 1_000_001, 2_000_001, 4_000_001], [1_000_001]])
def test_incomplete_groups_are_refused(indices):
    with pytest.raises(BenchError, match="question 1 has"):
        check_groups([(index, {"A": "x", "B": "y", "C": "z"}) for index in indices], where="f")


def test_complete_groups_and_unrotated_abnormal_ones_pass():
    three = {"A": "x", "B": "y", "C": "z"}
    rows = [(turn * 10**6 + 1, three) for turn in range(3)]
    check_groups([*rows, (2, {"A": "A", "B": "B"})], where="f")
