"""Rows of conversations as a test set: no layout is compared with nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genrecal.core.errors import DataError
from genrecal.data.asked import asked_rows
from genrecal.data.census_report import check_data
from genrecal.data.overlap import TestIndex
from genrecal.data.source import named_sources
from tests.data.test_formats import data_uri, png

TURNS = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "this"}]
SAID = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "this"}]
BLOCK = {"type": "image_url", "image_url": {"url": data_uri(0, 0)}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "llava": {"image": "a.png", "conversations": TURNS},
    "an image alone": {"image": ["a.png"]},
    "messages": {"images": ["a.png"], "messages": SAID},
    "an empty list beside": {"image": [], "images": ["a.png"], "messages": SAID},
    "no mark": {"image": "a.png", "conversations": [{"from": "human", "value": "what?"}, TURNS[1]]},
    "no answer": {"image": "a.png", "messages": SAID[:1]},
    "blocks": {"messages": [{"role": "user", "content": [BLOCK, {"type": "text", "text": "what?"}]}]},
    "question and answer": {"image": "a.png", "question": "what?", "answer": "this"},
    "question alone": {"images": ["a.png"], "question": "what?"},
    "prompt": {"images": ["a.png"], "prompt": [{"role": "user", "content": "what?"}]},
    "texts": {"images": ["a.png"], "texts": [{"user": "what?", "assistant": "this"}]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
def test_an_image_is_found_in_every_layout(layout: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "a.png").write_bytes(png(0, 0))
    row = LAYOUTS[layout]
    (folder / name).write_text(json.dumps(row if name == "test.jsonl" else [row]) + "\n")
    (one,) = asked_rows(folder / name)
    assert len(one.images) == 1 and all("what?" in text for text in one.texts)
    assert len(one.texts) == (layout != "an image alone")
    (tmp_path / "train.json").write_text(json.dumps([{"id": "t", **LAYOUTS["llava"]}]))
    with pytest.raises(DataError, match="is the training image of sample 't'"):
        check_data(named_sources([tmp_path / "train.json"]), tests=TestIndex([one]), workers=1)


def test_images_may_lie_beside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0, 0))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/test.json").write_text(json.dumps([{"image": "../a.png"}]))
    assert TestIndex(asked_rows(tmp_path / "sets/test.json")).images == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "asks nothing that could be looked for: no image, and no words"),
        ({"img": "a.png", "query": "what?"}, "asks nothing that could be looked for"),
        ({"conversations": [], "image": ""}, "asks nothing that could be looked for"),
        ({"img": "a.png", "conversations": TURNS}, "marks an image in its text and names none"),
        ({"image": "https://images.test/a.png"}, "lies at an address"),
        ("text", "is no object"),
    ],
)
def test_a_row_that_could_not_be_compared_is_refused(row: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps([{"question": "who?"}, row]))
    with pytest.raises(DataError, match=message) as caught:
        list(asked_rows(tmp_path / "test.json"))
    assert str(caught.value).startswith(f"{tmp_path / 'test.json'}, row 1: ")
