"""The census of a set with one of everything that can be wrong, and what a test set finds in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from bench.images import set_questions
from genrecal.core.errors import DataError
from genrecal.data.asked import asked_rows
from genrecal.data.bad import journal_lines
from genrecal.data.census import Census, percentiles
from genrecal.data.census_report import as_json, check_data
from genrecal.data.mixture import read_mixture
from genrecal.data.overlap import TestIndex, fingerprint, normalised, word_count
from genrecal.data.source import MixtureConfig, named_sources

runner = CliRunner()
ASKED = "which of these bars is the highest one?"


def scene(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Large soft patches: an image that still looks alike when it is scaled."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def row(name: str, image: str | None, question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    mark = "<image>\n" if image else ""
    turns = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        scene(number).save(tmp_path / f"{number}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


GOOD = [
    row("a", "0.png", "what is this?"),
    row("b", "1.png", "what is this?"),
    row("c", None, "what is 1+1?", "2", domain="science_math"),
    row("a again", "copy.png", "What is THIS?"),
    row("d", "2.png", "what is this?"),
]
BAD = [
    (row("x0", "gone.png", "what?"), "no such image"),
    (row("x1", "cut.png", "what?"), "cannot be decoded (image file is truncated"),
    (row("x2", "text.png", "what?"), "is not an image of a known format (image "),
    (row("x3", "0.png", "what?", " "), "has an empty answer"),
    (row("x4", None, "<image> what?"), "names 0 images but holds 1 '<image>'"),
    (row("x5", None, "what is <|image_pad|>?"), "has the text '<|image_pad|>', which stands for an image"),
    (row("x6", None, "what?", domain="cooking"), "has the domain 'cooking'"),
]


def write(folder: Path, rows: list[Any], name: str = "d.json") -> Path:
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def census(path: Path, *, test: Path | None = None, workers: int = 1, **files: Path) -> Census:
    tests = TestIndex(set_questions(test, conversations=asked_rows)) if test else None
    return check_data(named_sources([path]), tests=tests, workers=workers, **files)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_of_everything(folder: Path, workers: int) -> None:
    scene(0).save(folder / "copy.png", compress_level=1)
    path = write(folder, [*GOOD[:2], *(bad for bad, _ in BAD), *GOOD[2:]])
    files = {"json_file": folder / "census.json", "bad_file": folder / "bad.jsonl"}
    with pytest.raises(DataError, match=r"data: 7 rows cannot be used: .*d.json row 4: has an|no such image"):
        census(path, workers=workers, **files)
    bad = journal_lines(folder / "bad.jsonl")
    assert [line["id"] for line in bad] == [f"x{k}" for k in range(7)]
    assert [line["row"] for line in bad] == list(range(2, 9))
    for line, (_, message) in zip(bad, BAD, strict=True):
        assert line["what"].startswith(message)
    found = json.loads((folder / "census.json").read_text())
    assert found["samples"] == 5 and found["bad"]["rows"] == 7 and len(found["bad"]["reasons"]) == 7
    assert found["sources"][0]["domains"] == {"general_vqa": 4, "science_math": 1}
    assert found["domains"]["science_math"] == 1 and found["overlap"] is None
    assert found["images"] == {"p0": 0, "p50": 1, "p90": 1, "p99": 1, "p100": 1, "mean": 0.8}
    assert found["characters"]["p100"] == len("<image>\nwhat is this?yes")
    assert found["duplicates"] == {"samples": 1, "groups": [[f"{path} row 0", f"{path} row 10"]]}


def test_reasons_are_counted_without_what_only_one_row_has(folder: Path) -> None:
    rows = [row(str(k), f"gone{k}.png", "what?") for k in range(3)]
    rows += [row(str(k), None, "<image>" * k + "what?") for k in range(1, 4)]
    with pytest.raises(DataError):
        census(write(folder, rows), json_file=folder / "census.json")
    reasons = json.loads((folder / "census.json").read_text())["bad"]["reasons"]
    assert reasons == {"no such image": 3, "names … images but holds … …": 3}


def test_what_a_test_set_finds(folder: Path) -> None:
    scene(1, (96, 72)).save(folder / "scaled.jpg", quality=60)
    scene(7).save(folder / "other.png")
    rows = [
        row("pixels", "0.png", "something else"),
        row("scaled", "scaled.jpg", f"{ASKED.upper()}\n(A) red\n(B) blue\nAnswer with a letter."),
        row("same words, other image", "other.png", ASKED),
        row("scaled, other words", "scaled.jpg", "who is this?"),
        row("words alone", None, ASKED),
        row("short words alone", None, "what is this?"),
        row("new", "3.png", "how many are there?"),
    ]
    tested = [row("t0", "0.png", "what is this?"), row("t1", "1.png", f"{ASKED}\nA. red\nB. blue")]
    tested.append(row("t2", "1.png", ASKED))
    test = write(folder, tested, "test.json")
    taken = census(write(folder, rows), test=test, exclude_file=folder / "ids.json")
    assert {found["id"]: found["why"] for found in taken.overlaps} == {
        "pixels": "image",
        "scaled": "words and a like image",
        "words alone": "words",
    }
    assert taken.same_words == 2
    assert as_json(taken)["overlap"]["test_questions"] == 3
    test = write(folder, [*tested, row("t3", None, ASKED)], "test.json")
    taken = census(folder / "d.json", test=test, exclude_file=folder / "ids.json")
    assert {found["id"] for found in taken.overlaps} == {
        "pixels",
        "scaled",
        "words alone",
        "same words, other image",
    }


def test_what_was_found_is_left_out_of_the_next_run(folder: Path) -> None:
    path, test = write(folder, GOOD[:3]), write(folder, [row("t", "1.png", "who?")], "test.json")
    with pytest.raises(
        DataError, match=r"row 1: the test image '.*1.png' is the training image of sample 'b'"
    ):
        census(path, test=test)
    census(path, test=test, exclude_file=folder / "ids.json")
    config = folder / "run.yaml"
    config.write_text(
        f"student: s\ndata:\n  max_tokens: 64\n  exclude_ids: {folder / 'ids.json'}\n"
        f"  sources: [{{path: {path}, domain: knowledge}}]\n"
    )
    taken = census(config, test=test)
    assert taken.samples == 2 and taken.sources[0].excluded == 1 and not taken.overlaps
    data = named_sources([config])
    assert [sample.id for sample in read_mixture(MixtureConfig(**data.model_dump()))] == ["a", "c"]


def test_a_config_that_skips_some_rows_passes(folder: Path) -> None:
    path = write(folder, [*GOOD[:3], BAD[0][0]])
    config = folder / "run.yaml"
    for most, passes in ((1, True), (0, False)):
        config.write_text(
            f"data: {{on_bad: skip, max_bad: {most}, sources: [{{path: {path}, domain: knowledge}}]}}"
        )
        if passes:
            assert census(config).bad == 1
        else:
            with pytest.raises(DataError, match="no such image"):
                census(config)


def test_words_and_looks() -> None:
    assert normalised("<image>\nWhat's   THIS — a “cat”?") == normalised("what s this a cat")
    assert normalised("<image 1> ①") == "1"
    for text, words in (
        ("what is this, a cat?", 5),
        ("图中最高的柱子是什么颜色", 6),
        ("图中 red 是什么?", 3),
        ("", 0),
    ):
        assert word_count(normalised(text)) == words
    looks = [fingerprint(scene(seed)).look for seed in range(6)]
    again = [fingerprint(scene(seed, (200, 150))).look for seed in range(6)]
    for one in range(6):
        for other in range(6):
            assert ((looks[one] ^ again[other]).bit_count() <= 6) == (one == other)


def test_percentiles_of_nothing() -> None:
    assert percentiles(Census().images) == {}


def test_the_command(folder: Path) -> None:
    path = write(folder, GOOD[:3])
    test = write(folder, [row("t", "1.png", "who?")], "test.json")
    files = ["--json", str(folder / "c.json"), "--exclude", str(folder / "ids.json")]
    done = runner.invoke(cli.app, ["data", "check", str(path), "--test", str(test), *files])
    assert done.exit_code == 0, done.output
    assert "1 test questions with 1 images: 1 samples are among them" in done.output
    assert json.loads((folder / "ids.json").read_text())["ids"] == ["b"]
    assert json.loads((folder / "c.json").read_text())["samples"] == 3
    done = runner.invoke(cli.app, ["data", "check", str(folder / "nowhere.json")])
    assert done.exit_code == 3 and done.stderr.strip() == f"error: {folder / 'nowhere.json'}: no such file"
