"""The offline judge's grades, case by case."""

from __future__ import annotations

import pytest

from bench.judge import JudgeItem, OfflineJudge, match


@pytest.mark.parametrize(
    ("reply", "reference", "grade"),
    [
        ("Three circles.", "three circles", 1.0),
        ("There are three circles, I think", "three circles", 1.0),
        ("The cat", "a cat", 1.0),
        ("catalogue", "cat", 0.0),
        ("x = -1", "-1 <AND> -5", 0.5),
        ("x = -1 or x = -5", "-1<AND>-5", 1.0),
        ("x = 1", "-1", 0.0),
        ("it costs 3.50.", "3.50", 1.0),
        ("it costs 3.5", "3", 0.0),
        ("silver", "grey <OR> silver", 1.0),
        ("grey", "red <AND> blue <OR> grey", 1.0),
        ("red", "red <AND> blue <OR> grey", 0.5),
        ("", "cat", 0.0),
        ("anything", "", 0.0),
    ],
)
def test_grades(reply, reference, grade):
    assert match(reply, reference) == pytest.approx(grade)


def test_overlap_counts_content_words_and_never_makes_a_whole_point():
    assert match("There are 2 circles", "There are 3 circles") == pytest.approx(0.5)
    assert match("it is there and it was", "it is the cat") == 0.0
    assert 0 < match("square red", "red square") < 1


def test_its_column_never_bears_the_benchmarks_name_alone():
    judge = OfflineJudge()
    assert judge.title == "MM-Vet questions, offline judge"
    items = [JudgeItem(question="?", reference="cat", reply="cat")]
    assert judge.grade(items, run=0) == judge.grade(items, run=1)
