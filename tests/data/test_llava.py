"""LLaVA conversation JSON: what is read, and one line for every row that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.data import llava
from genrecal.data.llava import json_rows, read_llava
from genrecal.data.locate import LIST_AFTER
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
    "no object": ("text", "is no object with a conversation"),
    "no conversation": (row(conversations=None), "has no 'messages', 'conversations' or 'texts'"),
    "no list": (row(conversations={"from": "gpt"}), "'conversations' is no list of turns"),
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
    "unknown speaker": (row(conversations=[{"from": "cat", "value": "miaow"}]), "has a turn that is neither"),
    "number for text": (row(conversations=[{"from": "human", "value": 3}]), "has a turn that is neither"),
    "out of the folder": (row(image="../outside.png"), "names the image '../outside.png', outside of"),
    "absolute path": (row(image="/etc/passwd"), "names the image '/etc/passwd', outside of"),
    "number for image": (row(image=7), "image 0 is neither a path nor an image: 7"),
    "empty path": (row(image=[""]), "image 0 is neither a path nor an image: ''"),
    "zero byte in a path": (row(image="one.png\0"), "image 0 is neither a path nor an image"),
    "endless path": (row(image="a" * 5000), "image 0 is no path (File name too long)"),
    "an address": (row(image="https://images.test/a.png"), "image 0 lies at an address"),
    "a broken data URI": (row(image="data:image/png;base64,AA*A"), "image 0 is not valid base64"),
    "a data URI of text": (row(image="data:text/plain,hello"), "is a data URI of no image"),
    "two lists of images": (row(images=["two.png"]), "has both 'image' and 'images'"),
    "two conversations": (row(messages=[]), "has both 'messages' and 'conversations'"),
    "boxes that are not filled in": (
        row(conversations=said("<image>where?", "at <bbox>"), objects={"ref": [], "bbox": [[1, 2, 3, 4]]}),
        "has '<bbox>' in its text, which its 'objects' would stand for",
    ),
    "a path out of the folder as an address": (
        row(image="file:///etc/passwd"),
        "image '/etc/passwd', outside of",
    ),
    "a path up as an address": (row(image="file://../outside.png"), "image '../outside.png', outside of"),
    "a film": (row(videos=["a.mp4"]), "has videos; only images are read"),
    "half a character": (row(conversations=said("<image>\ud83d", "a")), "half a surrogate pair"),
    "a late system turn": (
        row(conversations=[*said("<image>a", "b"), {"from": "system", "value": "c"}, *said("d", "e")]),
        "has a system turn behind the first turn",
    ),
    "an answer to nothing": (
        row(image=None, conversations=[{"from": "system", "value": "c"}, {"from": "gpt", "value": "a"}]),
        "has an answer without a question",
    ),
    "nothing to learn": (
        row(conversations=[said("<image>a")[0], {"from": "gpt", "value": "b", "loss": False}]),
        "does not end with an answer",
    ),
    "a block of sound": (
        row(conversations=[{"role": "user", "content": [{"type": "audio"}]}, *said("", "b")[1:]]),
        "has a block that is neither text nor image",
    ),
    "list of numbers": (row(image=[7]), "image 0 is neither a path nor an image: 7"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_in_one_line(folder: Path, case: str) -> None:
    bad, message = BAD_ROWS[case]
    with pytest.raises(DataError) as caught:
        read(folder, row(), bad)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'd.json'} row 1: ") and message in line and "\n" not in line


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "inside.png").symlink_to(folder / "one.png")
    (folder / "away").symlink_to(folder.parent)
    assert len(read(folder, row(image="inside.png"))) == 1
    for name in ("link.png", "away/outside.png"):
        with pytest.raises(DataError, match=rf"names the image '{name}', outside of"):
            read(folder, row(image=name))


def test_many_images_of_a_folder_are_looked_up_in_its_listing(folder: Path) -> None:
    rows = []
    for number in range(2 * LIST_AFTER):
        (folder / f"{number}.png").symlink_to(folder / "one.png")
        rows.append(row(id=str(number), image=f"{number}.png"))
    assert len(read(folder, *rows)) == len(rows)
    (folder / "last.png").symlink_to(folder.parent / "outside.png")
    (folder / "none.png").symlink_to(folder / "nowhere")
    with pytest.raises(DataError) as caught:
        read(
            folder, *rows, row(image="last.png"), row(image="gone.png"), row(image="none.png"), row(image=".")
        )
    line = str(caught.value)
    assert line.startswith("data: 4 rows cannot be used: ") and "'last.png', outside of" in line
    assert f"{folder / 'gone.png'}: no such image" in line and f"{folder / 'none.png'}: no such image" in line


def test_all_bad_rows_are_counted_and_twenty_named(folder: Path) -> None:
    (folder / "other.json").write_text(json.dumps([row(image="gone.png")]))
    (folder / "d.json").write_text(
        json.dumps([row(conversations=said(f"<image>{k}", "")) for k in range(30)])
    )
    sources = [SourceConfig(path=folder / name) for name in ("d.json", "other.json")]
    with pytest.raises(DataError) as caught:
        read_mixture(sources)
    line = str(caught.value)
    assert line.startswith(f"data: 31 rows cannot be used: {folder / 'd.json'} row 0: has an empty answer; ")
    assert "row 19: has an empty" in line and "row 20" not in line and "; and 11 more" in line


def test_each_answer_can_be_learned(folder: Path) -> None:
    turns = said("<image>what?", "a cat", "<image>and here?", "a dog", "sure?", "yes")
    turns[3]["loss"] = False
    rows = [row(image=["one.png", "two.png"], conversations=turns), row(id="b")]
    first, third, other = read(folder, *rows, turns="each")
    assert (first.id, third.id, other.id) == ("a#1", "a#2", "b#1")
    assert first.answer == "a cat" and first.images == (folder / "one.png",) and len(first.turns) == 2
    assert third.answer == "yes" and third.images == (folder / "one.png", folder / "two.png")
    assert [turn.text for turn in third.turns] == [turn["value"] for turn in turns]
    with pytest.raises(DataError, match="has an empty answer"):
        read(folder, row(conversations=said("<image>a", " ", "b", "c")), turns="each")


def test_questions_and_answers_without_marks(folder: Path) -> None:
    rows = [
        {"image": "one.png", "question": "what?", "answer": "a cat"},
        {
            "images": ["one.png", "two.png"],
            "prompt": [{"role": "user", "content": "both?"}],
            "completion": "no",
        },
        {
            "images": ["two.png"],
            "texts": [{"user": "a?", "assistant": "b"}, {"user": "c?", "assistant": "d"}],
        },
        {"system": "be short", "question": "1+1?", "answer": "2"},
    ]
    one, both, cauldron, text = read(folder, *rows, domain="knowledge")
    assert one.turns[0].text == "<image>\nwhat?" and both.turns[0].text == "<image>\n<image>\nboth?"
    assert (
        cauldron.turns[0].text == "<image>\na?" and cauldron.turns[2].text == "c?" and cauldron.answer == "d"
    )
    assert [turn.role for turn in text.turns] == ["system", "user", "assistant"]
    assert one.id.startswith("d.json row 0 (")


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


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_a_list_is_read_through_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(llava, "BLOCK", block)
    rows = [{"id": k, "text": 'é "] }, \\' * (k % 7), "list": [{}, [k]]} for k in range(200)] + [12345] * 50
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=block % 3), encoding="utf-8")
    read_rows = list(json_rows(tmp_path / "a.json"))
    assert [one.content for one in read_rows] == rows
    assert read_rows[3].where == f"{tmp_path / 'a.json'} row 3"


def test_a_missing_file_and_a_folder_are_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_llava(folder / "nowhere.json")
    with pytest.raises(DataError, match="is a folder"):
        read_llava(folder)


def test_domains_are_left_out(folder: Path) -> None:
    samples = read(folder, row(), row(id="b", domain="general_vqa"))
    assert [sample.id for sample in without_domains(samples, ("general_vqa",))] == ["a"]
    assert without_domains(samples, ()) is samples
    with pytest.raises(DataError, match="no sample is left without the domains knowledge, general_vqa"):
        without_domains(samples, ("knowledge", "general_vqa"))
