"""A benchmark's images and words in what a subject learnt from, found by way of its manifest."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from bench.images import questions_of
from bench.run import overlap_lines
from bench.task import Row
from genrecal.core.files import sha256_file, write_json
from genrecal.core.manifest import NAME
from genrecal.data.subject_overlap import SKIPPED, find_overlap, run_of

LONG = "Which of the shapes in the picture is the largest one?"


def picture(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40, 32), colour)
    image.putpixel((3, 4), (1, 2, 3))
    image.save(path)
    return path


def turns(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "It is."}]


@pytest.fixture
def run(tmp_path):
    """A run on three samples: one has a test image, one a test question's words, one neither."""
    for name, colour in (("a", "red"), ("b", "green")):
        picture(tmp_path / "images" / f"{name}.png", colour)
    rows = [
        {"id": "one", "image": "images/a.png", "conversations": turns("<image>\nWhat?")},
        {"id": "two", "conversations": turns(LONG)},
        {"id": "three", "image": "images/b.png", "conversations": turns("<image>\nAnd this?")},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    folder = tmp_path / "run"
    (folder / "student").mkdir(parents=True)
    source = {"path": str(tmp_path / "train.json"), "domain": "knowledge"}
    write_json(folder / NAME, {"kind": "run", "config": {"data": {"sources": [source], "max_tokens": 9}}})
    return folder


@pytest.fixture
def questions(tmp_path):
    image = picture(tmp_path / "test" / "a.bmp", "red")
    row = {"gold": "A", "split": "test"}
    shown = Row(id="1", question="Another question?", images={1: image}, **row)
    words = Row(id="2", question=LONG.upper(), images={}, **row)
    other = Row(id="3", question="Something else that nobody has ever asked here?", images={}, **row)
    return {
        "chartqa": partial(questions_of, [shown, words], where="chartqa"),
        "mmmu": partial(questions_of, [other], where="mmmu"),
    }


def test_images_and_words_are_counted_and_named(run, questions):
    found = find_overlap(run / "student", questions)
    assert found["chartqa"]["by"] == {"image": 1, "words": 1}
    assert (found["chartqa"]["samples"], found["chartqa"]["questions"]) == (2, 2)
    assert [one["sample"] for one in found["chartqa"]["examples"]] == ["one", "two"]
    assert (found["mmmu"]["samples"], found["mmmu"]["compared"]) == (0, 3)
    (line,) = overlap_lines(found)
    assert line.startswith("chartqa: 2 of 3 training samples overlap with 2 of its images and questions")


def test_what_the_run_left_out_is_left_out(run, questions):
    manifest = json.loads((run / NAME).read_text())
    manifest["config"]["data"]["exclude_domains"] = ["knowledge"]
    write_json(run / NAME, manifest)
    assert find_overlap(run, questions)["chartqa"]["compared"] == 0


def test_a_build_names_its_run(run):
    build = run / "build-int8"
    build.mkdir()
    for sha256, expected in ((sha256_file(run / NAME), run), ("0", None)):
        write_json(build / NAME, {"kind": "build", "provenance": {"run_manifest": sha256}})
        assert run_of(build) == (expected and expected.resolve())
    assert run_of(run / "student") == run_of(run) == run.resolve()


def test_nothing_to_compare_with_is_said(run, questions, tmp_path):
    found = find_overlap(tmp_path, questions)
    assert SKIPPED in found and "leads to no training run" in overlap_lines(found)[0]
    (tmp_path / "train.json").unlink()
    assert "train.json" in find_overlap(run / "student", questions)[SKIPPED]


def test_data_and_runs_can_be_named(run, questions, tmp_path):
    for named in (run, tmp_path / "train.json"):
        assert find_overlap(tmp_path, questions, training=[named])["chartqa"]["samples"] == 2
