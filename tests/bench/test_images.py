"""Every image of a test set once."""

from __future__ import annotations

import json

import pytest

from bench.images import set_images
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


def test_what_is_no_set(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "no.tsv", tmp_path / "notes.txt", tmp_path):
        with pytest.raises(DataError):
            list(set_images(path))
