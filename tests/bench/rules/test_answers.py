"""Rules for answers that are no letters, by hand; tests/bench/test_official.py has thousands of rows more."""

from __future__ import annotations

import pytest

from bench.rules import boxes, lmms_letters, mathvista_answers, relaxed_accuracy, vqa_accuracy
from bench.rules.mmmu_parse import parse_choice_pro


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("105", "100", True),
        ("105.01", "100", False),
        ("2008", "2010", True),
        ("25%", "0.25", True),
        ("25", "0.25", False),
        ("0.0", "0", False),
        ("0", "0", True),
        ("$10", "10", False),
        ("1,234", "1234", False),
        ("yes ", "Yes", False),
        ("YES", "yes", True),
    ],
)
def test_relaxed_accuracy(reply, gold, right):
    assert relaxed_accuracy.is_right(reply, gold) is right


def test_ten_same_answers_are_compared_as_they_are():
    same, mixed = ["yes"] * 10, ["yes"] * 9 + ["no"]
    assert (vqa_accuracy.official("Yes", same), vqa_accuracy.official("Yes", mixed)) == (0, 1)
    assert vqa_accuracy.lmms("Yes", same) == vqa_accuracy.vlmevalkit("Yes", same) == 1
    assert vqa_accuracy.official("no", mixed) == pytest.approx(0.3)


def test_each_codes_full_stop():
    answers = ["1000."] * 5 + ["cat"] * 5
    for accuracy, expected in (
        (vqa_accuracy.official, 1),
        (vqa_accuracy.lmms, 1),
        (vqa_accuracy.vlmevalkit, 0),
    ):
        assert accuracy("1000", answers) == expected
    assert vqa_accuracy.lmms_evalai("John 's", ["john's"] * 5 + ["x"] * 5) == 1


def test_boxes_of_two_kits():
    assert boxes.box_of("at [0.1, 0.2, 0.3, 0.4].") == (0.1, 0.2, 0.3, 0.4)
    assert boxes.box_of("[.1, .2, .3, .4]") is None and boxes.box_of("[0.1 0.2 0.3 0.4]") is None
    assert boxes.kit_box_of("[.5 .5 1e0 1]", 200, 100) == (100, 50, 200, 100)
    assert boxes.kit_box_of("from 500, 500 to 0, 0", 200, 100) == (0, 0, 100, 50)  # per mille, corners turned
    assert boxes.kit_box_of("[2000, 0, 3000, 40]", 2500, 100) == (2000, 0, 2500, 40)
    assert boxes.kit_box_of("1, 2, 3", 10, 10) is None


def test_overlap():
    assert boxes.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert boxes.overlap((0, 0, 2, 2), (2, 2, 3, 3)) == 0
    assert boxes.overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0  # no area at all


@pytest.mark.parametrize(("one", "other", "count"), [("", "abc", 3), ("kitten", "sitting", 3), ("a", "a", 0)])
def test_edits(one, other, count):
    assert mathvista_answers.edits(one, other) == mathvista_answers.edits(other, one) == count


def test_an_extraction_becomes_an_answer():
    choice = {"question_type": "multi_choice", "answer_type": "text"}
    assert mathvista_answers.normalise("(b) or (a)", choice, ["red", "green"]) == "green"
    assert mathvista_answers.normalise("", choice, ["green", "red"]) == "red"
    number = {"question_type": "free_form", "answer_type": "float", "precision": 1.0}
    assert mathvista_answers.normalise("2.54", number, []) == "2.5"
    assert mathvista_answers.normalise("many", number, []) is None
    assert mathvista_answers.extract("about 2.5", number, []) is None  # an LLM's


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A, no, (B)", "A"),
        ("So, no, (B)", "B"),
        ("I choose C since D is not", "D"),
        ("The best", None),
        ("  ", None),
        ("BAD", "D"),
    ],
)
def test_lmms_letter(reply, letter):
    assert lmms_letters.extract_letter(reply, "ABCD") == letter


def test_letters_at_the_beginning():
    assert lmms_letters.first_letter("The answer is B") == "T" and lmms_letters.first_letter("(b)") == "B"
    assert lmms_letters.first_character(" bad") == "b" and lmms_letters.first_character("") == ""
    assert lmms_letters.equals_letter("B. it is", "B") and not lmms_letters.equals_letter("B it is", "B")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("A or B\nAnswer: C", "C"), ("Answer: A B", "B"), ("E.", "E"), ("the ABC is shown", "C"), ("x", None)],
)
def test_mmmu_pro(reply, letter):
    assert parse_choice_pro(reply, dict.fromkeys("ABCDE", "zz")) == letter
