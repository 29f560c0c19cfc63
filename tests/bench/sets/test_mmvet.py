"""MM-Vet: files, prompts, and the averages worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest

from bench.judge import Grade, OfflineJudge
from bench.scoring import score as labelled
from bench.sets import mmvet
from bench.task import Choices
from bench.tasks import TASKS
from genrecal.core.errors import BenchError, DataError
from tests.bench.tiny_sets import mmvet_row, write_mmvet


def scored(rows, replies, judge, *, runs=1):
    choices = Choices(judge=judge, judge_runs=runs)
    return labelled(TASKS["mmvet"], rows, replies, choices, generation="greedy")


class TableJudge:
    """Grades from a table: reply -> one grade for each run."""

    title = "MM-Vet (judge table)"
    facts = MappingProxyType({"judge": "table"})

    def __init__(self, table):
        self.table = table

    def grade(self, items, *, run):
        return [Grade(score=self.table[item.reply][run], reason="") for item in items]

    def beside(self, items):
        return {}


@pytest.fixture
def questions(tmp_path):
    rows = {
        "v1_0": mmvet_row(0, "cat", "rec"),
        "v1_1": mmvet_row(1, "3", "ocr", "math"),
        "v1_2": mmvet_row(2, "4", "math", "ocr"),
    }
    return mmvet.load(write_mmvet(tmp_path / "set", rows))


def test_prompt(questions):
    image, text = mmvet.prompt(questions[0]).parts
    assert image.size == (40, 32) and text == "What is shown?"


def test_averages(questions):
    replies = {"v1_0": "a", "v1_1": "b", "v1_2": "c"}
    judge = TableJudge({"a": [1.0, 0.8], "b": [0.5, 0.5], "c": [0.0, 0.2]})
    score = scored(questions, replies, judge, runs=2)
    assert score.details["runs"] == pytest.approx([0.5, 0.5])
    assert score.score == pytest.approx(0.5) and score.details["std_over_runs"] == pytest.approx(0)
    assert score.groups["capability"]["math"].score == pytest.approx(0.3)
    assert {name: group.n for name, group in score.groups["combination"].items()} == {"math+ocr": 2, "rec": 1}
    assert score.hits["v1_0"] == pytest.approx(0.9)
    assert score.title == judge.title and score.split == "v1"


def test_the_deviation_is_the_populations(questions):
    judge = TableJudge({"a": [1.0, 0.0]})
    score = scored(questions, dict.fromkeys(("v1_0", "v1_1", "v1_2"), "a"), judge, runs=2)
    assert score.details["std_over_runs"] == pytest.approx(0.5)


def test_ungraded_replies_are_no_zeros_and_too_many_leave_no_score(questions):
    judge = TableJudge({"a": [1.0], "b": [None]})
    score = scored(questions, {"v1_0": "a", "v1_1": "a", "v1_2": "b"}, judge)
    assert score.score is None and score.details["ungraded"] == 1 and not score.details["complete"]
    assert score.hits == {"v1_0": 1.0, "v1_1": 1.0}
    nothing = scored(questions, dict.fromkeys(("v1_0", "v1_1", "v1_2"), "b"), judge)
    assert nothing.score is None and nothing.hits == {}


def test_one_ungraded_of_very_many_is_left_out(questions):
    many = [replace(questions[0], id=f"v1_{n}") for n in range(200)]
    replies = {question.id: "b" if question.id == "v1_7" else "a" for question in many}
    score = scored(many, replies, TableJudge({"a": [0.6], "b": [None]}))
    assert score.score == pytest.approx(0.6)


def test_offline(questions):
    score = scored(questions, {"v1_0": "a cat", "v1_1": "3", "v1_2": "3"}, OfflineJudge())
    assert score.score == pytest.approx(2 / 3) and score.details["fully_right"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "has no text 'question'"),
        ({"capability": "rec"}, "no list of names"),
        ({"imagename": "no.png"}, "no such image"),
    ],
)
def test_bad_rows(tmp_path, change, message):
    folder = write_mmvet(tmp_path / "set", {"v1_0": mmvet_row(0, "cat", "rec")})
    content = {"v1_0": {**mmvet_row(0, "cat", "rec"), **change}}
    (folder / "mm-vet.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        mmvet.load(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", "no json"])
def test_bad_files(tmp_path, content):
    (tmp_path / "mm-vet.json").write_text(content)
    with pytest.raises(DataError):
        mmvet.load(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        mmvet.load(tmp_path / "elsewhere")


def test_a_question_without_an_answer_is_an_error(questions):
    with pytest.raises(BenchError, match="3 questions have no answer"):
        scored(questions, {}, OfflineJudge())
