"""Every image of a test set once, and what is asked about it."""

from __future__ import annotations

import pytest

from bench.images import set_images, set_questions
from genrecal.core.errors import DataError


def test_each_kind_of_set(sets):
    counts = {"mmb": 2, "mmmu": 2, "mmvet": 3}
    for name, path in sets.items():
        images = list(set_images(path))
        assert len(images) == counts[name]
        assert all(image.size == (40, 32) for _, image in images)
        assert len({label for label, _ in images}) == len(images)


def test_questions_come_with_and_without_their_options(sets):
    found = {name: list(set_questions(path)) for name, path in sets.items()}
    assert [len(questions) for questions in found.values()] == [2, 2, 3]
    assert all(len(question.texts) == 1 for question in found["mmvet"])
    for name in ("mmb", "mmmu"):
        for question in found[name]:
            alone, whole = question.texts
            assert whole.startswith(f"{alone}\nA. ") and "\nB. " in whole
            assert all(label.startswith(question.name) for label in question.images)


def test_what_is_no_set(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "rows.json").write_text("[]")
    for path in (tmp_path / "no.tsv", tmp_path / "notes.txt", tmp_path / "rows.json", tmp_path):
        with pytest.raises(DataError):
            list(set_images(path))


def test_conversations_are_read_by_whom_they_are_given_to(tmp_path):
    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_text("[]")
        assert list(set_questions(tmp_path / name, conversations=lambda path: [path])) == [tmp_path / name]
