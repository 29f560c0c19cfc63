"""LLaVA conversation JSON: what is read, and one line for every row that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.data.llava import read_llava
from genrecal.data.mixture import SourceConfig, read_mixture, without_domains


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "image": "one.png",
        "domain": "knowledge",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}],
    } | changes


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(values)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("data/one.png", "data/two.png", "outside.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path / "data"


def read(folder: Path, *rows: Any, **options: Any) -> Any:
    (folder / "d.json").write_text(json.dumps(list(rows)))
    return read_mixture([SourceConfig(path=folder / "d.json", **options)])


def test_what_is_read(folder: Path) -> None:
    two = row(id="b", image=["one.png", "two.png"], conversations=said("<image><image>both?", "yes"))
    none = row(id="c", image=None, domain="science_math", conversations=said("1+1?", "2", "and 2+2?", "4"))
    one, both, text = read(folder, row(), two, none)
    assert one.images == (folder / "one.png",) and one.answer == "a cat" and one.id == "a"
    assert both.images == (folder / "one.png", folder / "two.png")
    assert text.images == () and [turn.role for turn in text.turns] == ["user", "assistant"] * 2
    assert text.answer == "4" and text.domain == "science_math" and text.source == str(folder / "d.json")


def test_images_and_domain_of_the_source(folder: Path) -> None:
    untagged = row()
    del untagged["domain"]
    (folder / "d.json").write_text(json.dumps([untagged | {"image": "data/one.png"}]))
    (sample,) = read_llava(folder / "d.json", images=folder.parent, domain="chart_document")
    assert sample.domain == "chart_document" and sample.images == (folder / "one.png",)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no object": ("text", "has no list 'conversations'"),
    "no conversation": (row(conversations=None), "has no list 'conversations'"),
    "no turn": (row(conversations=[]), "does not end with an answer"),
    "no answer": (row(conversations=said("<image>what?")), "does not end with an answer"),
    "ends with a question": (row(conversations=said("<image>a", "b", "c")), "does not end with an answer"),
    "empty answer": (row(conversations=said("<image>what?", " \n")), "has an empty answer"),
    "too few marks": (row(conversations=said("what?", "a cat")), "names 1 images but holds 0 '<image>'"),
    "too many marks": (
        row(conversations=said("<image><image>?", "a")),
        "names 1 images but holds 2 '<image>'",
    ),
    "mark without image": (row(image=None), "names 0 images but holds 1 '<image>'"),
    "unknown domain": (row(domain="cooking"), "has the domain 'cooking'. Give the row or its source one of"),
    "no domain": (row(domain=None), "has the domain 'None'"),
    "unknown speaker": (row(conversations=[{"from": "cat", "value": "miaow"}]), "has a turn that is not"),
    "number for text": (row(conversations=[{"from": "human", "value": 3}]), "has a turn that is not"),
    "out of the folder": (row(image="../outside.png"), "names the image '../outside.png', outside of"),
    "absolute path": (row(image="/etc/passwd"), "names the image '/etc/passwd', outside of"),
    "number for image": (row(image=7), "'image' is neither a path nor a list of paths"),
    "list of numbers": (row(image=[7]), "'image' is neither a path nor a list of paths"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_in_one_line(folder: Path, case: str) -> None:
    bad, message = BAD_ROWS[case]
    with pytest.raises(DataError) as caught:
        read(folder, row(), bad)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'd.json'} row 1: ") and message in line and "\n" not in line


def test_a_missing_image_names_its_sample(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(folder, row(), row(id="b", image="three.png"))
    line = str(caught.value)
    assert line.startswith(f"{folder / 'three.png'}: no such image") and "'b'" in line and "\n" not in line


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[]", "non-empty JSON list"), ('{"a": 1}', "non-empty JSON list")],
)
def test_a_bad_file_is_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "d.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_llava(folder / "d.json")
    assert str(folder / "d.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_llava(folder / "nowhere.json")
    with pytest.raises(DataError, match="is a folder"):
        read_llava(folder)


def test_domains_are_left_out(folder: Path) -> None:
    samples = read(folder, row(), row(id="b", domain="general_vqa"))
    assert [sample.id for sample in without_domains(samples, ("general_vqa",))] == ["a"]
    assert without_domains(samples, ()) == samples
    with pytest.raises(DataError, match="no sample is left without the domains knowledge, general_vqa"):
        without_domains(samples, ("knowledge", "general_vqa"))
