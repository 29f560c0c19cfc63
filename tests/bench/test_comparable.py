"""Scores compare only where nothing but the subject differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.comparable import LABELS, differences, require_comparable
from bench.scoring import score
from bench.task import Choices, Row
from bench.tasks import TASKS
from genrecal.core.errors import BenchError


@pytest.fixture
def rows():
    groups = {"subject": ("Art",), "domain": ("Art and Design",), "question type": ("open",)}
    row = {"question": "?", "images": {}, "gold": "x", "split": "validation", "groups": groups}
    return [Row(id=f"validation_Art_{n}", facts={"subject": "Art"}, **row) for n in range(2)]


def scored(rows, **choices):
    replies = {row.id: "x" for row in rows}
    return score(TASKS["mmmu"], rows, replies, Choices(**choices), generation="greedy")


def test_the_same_choices_compare(rows):
    one = scored(rows)
    require_comparable(one, replace(one, score=0.1, hits={}))
    assert (one.benchmark, one.compat, one.generation, one.judge) == ("mmmu", "official", "greedy", None)


@pytest.mark.parametrize("label", LABELS)
def test_any_other_choice_does_not(rows, label):
    one = scored(rows)
    other = replace(one, **{label: {"judge": "other"} if label == "judge" else "other"})
    with pytest.raises(BenchError, match=r"'a' and 'b' .*other"):
        require_comparable(one, other, names=("a", "b"))
    assert list(differences(one, other)) == [label]


def test_another_rule_has_a_column_of_its_own(rows):
    official, kit = scored(rows), scored(rows, compat="vlmevalkit")
    assert (official.title, kit.title) == ("MMMU", "MMMU (vlmevalkit)")
    with pytest.raises(BenchError, match=r"scored by different rules \(official / vlmevalkit\)"):
        require_comparable(official, kit)


def test_a_rule_that_a_benchmark_lacks(rows):
    with pytest.raises(BenchError, match="no rule 'lmms'"):
        score(TASKS["mmvet"], rows, {}, Choices(compat="lmms"), generation="model")


def test_ids_that_are_missing_unknown_or_there_twice(rows):
    task, replies = TASKS["mmmu"], {row.id: "x" for row in rows}
    for of, given, message in (
        (rows, {}, r"2 questions have no answer \('validation_Art_0', 'validation_Art_1'\)"),
        (rows, replies | {"y": ""}, r"1 answers belong to no question \('y'\)"),
        ([*rows, rows[0]], replies, r"1 ids stand there twice \('validation_Art_0'\)"),
        ([], {}, "no questions"),
    ):
        with pytest.raises(BenchError, match=message):
            score(task, of, given, Choices(), generation="model")
