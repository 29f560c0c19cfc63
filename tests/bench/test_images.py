"""Every image of a test set once, and what is asked about it."""

from __future__ import annotations

import json

import pytest

from bench.images import set_images, set_questions
from genrecal.core.errors import DataError
from tests.bench.tiny_sets import png


def test_each_kind_of_set(sets, tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    rows = [{"image": "a.png"}, {"image": ["a.png"]}, {}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    counts = {"mmb": 2, "mmmu": 2, "mmvet": 3}
    for name, path in [*sets.items(), ("train", tmp_path / "train.json")]:
        images = list(set_images(path))
        assert len(images) == counts.get(name, 1)
        assert all(image.size == (40, 32) for _, image in images)
        assert len({label for label, _ in images}) == len(images)


def test_questions_come_with_and_without_their_options(sets, tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "this"}]
    rows = [{"image": "a.png", "conversations": turns}, {"conversations": turns}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    found = {name: list(set_questions(path)) for name, path in sets.items()}
    found["train"] = list(set_questions(tmp_path / "train.json"))
    assert [len(questions) for questions in found.values()] == [2, 2, 3, 2]
    assert [len(question.images) for question in found["train"]] == [1, 0]
    assert all(question.texts == ("<image>what?",) for question in found["train"])
    assert all(len(question.texts) == 1 for question in found["mmvet"])
    for name in ("mmb", "mmmu"):
        for question in found[name]:
            alone, whole = question.texts
            assert whole.startswith(f"{alone}\nA. ") and "\nB. " in whole
            assert all(label.startswith(question.name) for label in question.images)


def test_what_is_no_set(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "no.tsv", tmp_path / "notes.txt", tmp_path):
        with pytest.raises(DataError):
            list(set_images(path))
