"""MMBench: the TSV as it is published, CircularEval by hand, and files made to hurt."""

from __future__ import annotations

import pytest

from bench.scoring import score as labelled
from bench.sets import mmbench
from bench.task import Choices
from bench.tasks import TASKS
from genrecal.core.errors import BenchError, DataError
from tests.bench.tiny_sets import base64_png, mmb_row, write_mmb

MILLION = 10**6


def scored(rows, replies, compat="official"):
    return labelled(TASKS["mmb"], rows, replies, Choices(compat=compat), generation="greedy")


@pytest.fixture
def rotated(tmp_path):
    """Question 1 with two options, question 2 with three, rotations and references in the file."""
    other = {"category": "other", "l2-category": "logic_reasoning"}
    rows = [
        mmb_row(1, ["red", "green"], "A", hint="Look."),
        mmb_row(2, ["red", "green", "blue"], "C", **other),
        mmb_row(MILLION + 1, ["green", "red"], "B", hint="Look.", image="1"),
        mmb_row(MILLION + 2, ["green", "blue", "red"], "B", image="2", **other),
        mmb_row(2 * MILLION + 2, ["blue", "red", "green"], "A", image="2", **other),
    ]
    return write_mmb(tmp_path / "mmb.tsv", rows)


def test_rows_and_prompts(rotated):
    rows = mmbench.load(rotated)
    assert [int(row.id) for row in rows] == [1, 2, MILLION + 1, MILLION + 2, 2 * MILLION + 2]
    assert rows[3].images == rows[1].images
    image, text = mmbench.prompt(rows[0]).parts
    assert image.size == (40, 32)
    assert text == (
        "Hint: Look.\nQuestion: Which colour?\nOptions:\nA. red\nB. green\n"
        "Please select the correct answer from the options above. \n"
    )
    assert (
        mmbench.prompt(rows[1]).parts[1].startswith("Question: Which colour?\nOptions:\nA. red\nB. green\nC.")
    )


def test_circular_eval_by_hand(rotated):
    rows = mmbench.load(rotated)
    right = {row.id: row.gold for row in rows}
    assert scored(rows, right).score == 1.0
    # One wrong rotation loses question 2, an unreadable one loses question 1.
    score = scored(rows, {**right, str(2 * MILLION + 2): "B", "1": "who knows"})
    assert score.hits == {"1": 0.0, "2": 0.0}
    assert score.details["unparsed_rows"] == 1
    assert score.details["questions_lost_to_unparsed_rows"] == 1
    assert score.details["vanilla"] == 0.5
    assert score.details["vanilla_all_rows"] == pytest.approx(3 / 5)
    score = scored(rows, {**right, "2": "red"})
    assert score.score == 0.5
    assert {name: group.score for name, group in score.groups["l2-category"].items()} == {
        "CP": 1.0,
        "LR": 0.0,
    }
    assert score.groups["category"]["other"].n == 1


def test_a_model_that_always_says_a_gets_nothing(rotated):
    rows = mmbench.load(rotated)
    score = scored(rows, {row.id: "A" for row in rows})
    assert (score.score, score.details["vanilla"]) == (0.0, 0.5)


def test_main_rows_alone_are_rotated(rotated, tmp_path):
    main = [
        mmb_row(1, ["red", "green"], "A", hint="Look."),
        mmb_row(2, ["red", "green", "blue"], "C", category="other", **{"l2-category": "logic_reasoning"}),
    ]
    made = mmbench.load(write_mmb(tmp_path / "main.tsv", main))
    assert sorted(made, key=lambda row: row.id) == sorted(mmbench.load(rotated), key=lambda row: row.id)


def test_splits_are_scored_apart(tmp_path):
    rows = [mmb_row(1, ["red", "green"], "A"), mmb_row(2, ["red", "green"], "A", split="test")]
    rows = mmbench.load(write_mmb(tmp_path / "mmb.tsv", rows))
    replies = {row.id: row.gold if row.split == "dev" else "no" for row in rows}
    score = scored(rows, replies)
    assert {name: group.score for name, group in score.groups["split"].items()} == {"dev": 1.0, "test": 0.0}
    assert score.groups["test l2-category"]["CP"].score == 0.0


def test_an_answer_that_is_missing_is_an_error(rotated):
    rows = mmbench.load(rotated)
    replies = {row.id: "A" for row in rows}
    del replies["2"]
    with pytest.raises(BenchError, match="1 questions have no answer"):
        scored(rows, replies)
    with pytest.raises(BenchError, match="1 answers belong to no question"):
        scored(rows, {row.id: "A" for row in rows} | {"77": "A"})
    with pytest.raises(BenchError, match="turns"):
        scored(rows[:-1], {row.id: "A" for row in rows[:-1]})


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            [mmb_row(1, ["x1", "x2"], "A"), mmb_row(1, ["x1", "x2"], "A")],
            BenchError,
            "1 ids stand there twice",
        ),
        ([mmb_row(1, ["x1", "x2"], "C")], DataError, "its answer 'C' is none of its options"),
        ([mmb_row(1, ["x1", "x2"], "A", image="%" * 80)], DataError, "not valid base64"),
        (
            [mmb_row(1, ["x1", "x2"], "A", image=base64_png("red")[:80])],
            DataError,
            "cannot be decoded|known format",
        ),
        ([mmb_row(1, ["x1", "x2"], "A", image="9")], DataError, "names no row that holds one"),
        ([mmb_row(1, ["x1", "", "x3"], "A")], DataError, "not A, B and so on"),
        (
            [
                mmb_row(1, ["x1", "x2"], "A"),
                mmb_row(2, ["x1", "x2"], "A"),
                mmb_row(MILLION + 2, ["x2", "x1"], "B"),
            ],
            BenchError,
            "question 1 has rows for turns",
        ),
        ([{"index": 1, "question": "?"}], DataError, "has no column 'A'"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path, rows, error, message):
    with pytest.raises(error, match=message) as caught:
        mmbench.load(write_mmb(tmp_path / "mmb.tsv", rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"index\tquestion\tA\tB\tanswer\timage\n", b"\xff\xfe\x00bad"])
def test_empty_and_binary_files(tmp_path, content):
    path = tmp_path / "mmb.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError):
        mmbench.load(path)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "no.tsv", tmp_path):
        with pytest.raises(DataError, match="Name the benchmark's TSV"):
            mmbench.load(path)


def test_several_images_and_image_files(tmp_path):
    two = str([base64_png("red"), base64_png("blue")])
    rows = mmbench.load(write_mmb(tmp_path / "two.tsv", [mmb_row(1, ["x1", "x2"], "A", image=two)]))
    assert len(mmbench.prompt(rows[0]).parts) == 3
    row = mmb_row(1, ["x1", "x2"], "A", image_path="red.png")
    del row["image"]
    with pytest.raises(DataError, match="no such image"):
        mmbench.load(write_mmb(tmp_path / "path.tsv", [row]))
