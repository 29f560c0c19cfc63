"""MMMU: parquet files as they are published, prompts, quirks of the official parse, files made to hurt."""

from __future__ import annotations

import pytest
from PIL import Image

from bench.rules.mmmu_parse import choice_is_right, open_is_right, parse_choice, parse_open
from bench.scoring import score as labelled
from bench.sets import mmmu
from bench.task import Choices
from bench.tasks import TASKS
from genrecal.core.errors import BenchError, DataError
from tests.bench.tiny_sets import mmmu_row, png, write_mmmu


def scored(rows, replies, **choices):
    return labelled(TASKS["mmmu"], rows, replies, Choices(**choices), generation="greedy")


OPTIONS = {"A": "$6", "B": "seven dollars", "C": "red"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) or rather (C)", "C"),
        ("A, no, B it is", "B"),
        ("(A) but B is near", "A"),  # brackets win
        ("**B**", None),
        ("\\boxed{C}", None),
        ("b", None),
        ("B: because", None),
        ("B. seven dollars", None),
        ("seven dollars", None),  # five words or fewer are not searched for texts
        ("I am sure it costs seven dollars", "B"),
        ("It is red, no, it is seven dollars", "B"),
        ("", None),
    ],
)
def test_choice(reply, letter):
    assert parse_choice(reply, OPTIONS) == letter


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("Parisian", "paris", True),
        ("eyes", "yes", True),
        ("It is not 3", "3", True),
        ("1, 2, 3", "3", True),
        ("1, 2, 3", "2", False),  # a number before a comma is none
        (".5", "0.5", False),
        ("50%", "0.5", False),
        ("1/2", "0.5", False),
        ("half", "0.5", False),
        ("3.004", "3", True),
        ("3.01", "3", False),
        ("1,234", "1234", True),
        ("1.5e3", "1500", True),
        ("x + 1 = 7", "7", True),
        ("The probability is 0.5, so we accept", "0.5", False),
        ("The answer is blue", ("green", "blue"), True),
    ],
)
def test_open(reply, gold, right):
    assert open_is_right(parse_open(reply), gold) is right


def test_gold_letters_may_be_several():
    assert choice_is_right("B", ("A", "B")) and not choice_is_right(None, "A")


@pytest.fixture
def rows():
    return [
        mmmu_row("validation_Art_1"),
        mmmu_row("validation_Art_2", answer="B"),
        mmmu_row(
            "validation_Art_Theory_1",
            question="Compare <image 2> with <image 1>.",
            image_2={"bytes": png("blue", (20, 60)), "path": None},
            question_type="open",
            options="[]",
            answer="['azure', 'blue']",
        ),
        mmmu_row("validation_Sums_1", question_type="open", options="[]", answer="[0, 1]", question="Where?"),
    ]


def test_prompts(rows, tmp_path):
    questions = mmmu.load(write_mmmu(tmp_path / "mmmu.parquet", rows))
    image, text = mmmu.prompt(questions[0]).parts
    assert image.size == (40, 32)
    assert text == (
        " Which colour is it?\n\n(A) red\n(B) green\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    parts = mmmu.prompt(questions[2]).parts
    assert [part.size if isinstance(part, Image.Image) else part for part in parts] == [
        "Compare ",
        (20, 60),
        " with ",
        (40, 32),
        ".\n\nAnswer the question using a single word or phrase.",
    ]
    assert questions[2].gold == ("azure", "blue")
    assert questions[3].gold == "[0, 1]"
    # An image that the text does not name comes first.
    assert isinstance(mmmu.prompt(questions[3]).parts[0], Image.Image)


def test_scores_by_subject_and_domain(rows, tmp_path):
    questions = mmmu.load(write_mmmu(tmp_path / "mmmu.parquet", rows))
    replies = {
        "validation_Art_1": "(A)",
        "validation_Art_2": "no idea",
        "validation_Art_Theory_1": "Blue",
        "validation_Sums_1": "[0, 1]",
    }
    score = scored(questions, replies)
    assert (score.score, score.n, score.split) == (0.75, 4, "validation")
    assert score.details["random_rows"] == 1
    assert score.groups["subject"]["Art"].score == 0.5
    assert {name: group.n for name, group in score.groups["domain"].items()} == {
        "Art and Design": 3,
        "Other": 1,
    }
    # Seed 42 draws the first of two options, which is wrong here.
    drawn = scored(questions, replies, official_random=True)
    assert drawn.score == 0.75 and drawn.title != score.title
    assert score.details["random_rows_right_by_luck"] == 0


def test_a_folder_is_read_whole_and_its_validation_files_alone(rows, tmp_path):
    write_mmmu(tmp_path / "set" / "Art" / "validation-00000-of-00001.parquet", rows[:2])
    write_mmmu(tmp_path / "set" / "Sums" / "validation-00000-of-00001.parquet", rows[2:])
    write_mmmu(tmp_path / "set" / "Art" / "dev-00000-of-00001.parquet", [mmmu_row("dev_Art_1")])
    assert len(mmmu.load(tmp_path / "set")) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([mmmu_row("validation_Art_1", options="['a', __import__('os')]")], "no Python list"),
        ([mmmu_row("validation_Art_1", answer="C")], "its answer 'C' is none of its 2 options"),
        ([mmmu_row("validation_Art_1", question="<image 3>")], "image_3 is empty"),
        (
            [mmmu_row("validation_Art_1", image_1={"bytes": png("red")[:60], "path": None})],
            "cannot be decoded",
        ),
        ([mmmu_row("nonsense")], "not of the form"),
        ([mmmu_row("dev_Art_1"), mmmu_row("validation_Art_1")], "several splits"),
        ([mmmu_row("validation_Art_1"), mmmu_row("validation_Art_1")], "1 ids stand there twice"),
        ([{"id": "validation_Art_1"}], "has no column 'question'"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path, rows, message):
    with pytest.raises((DataError, BenchError), match=message) as caught:
        mmmu.load(write_mmmu(tmp_path / "mmmu.parquet", rows))
    assert "\n" not in str(caught.value)


def test_no_parquet_an_empty_folder_and_no_file(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        mmmu.load(tmp_path / "bad.parquet")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "no.parquet"):
        with pytest.raises(DataError, match=r"no parquet file|no such file"):
            mmmu.load(path)


def test_a_question_without_an_answer_is_an_error(rows, tmp_path):
    questions = mmmu.load(write_mmmu(tmp_path / "mmmu.parquet", rows))
    with pytest.raises(BenchError, match="4 questions have no answer"):
        scored(questions, {})
