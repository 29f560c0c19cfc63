"""TextVQA: short answers that stand in the image, against ten annotators; no OCR tokens in the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.image_files import find_image
from bench.rules import vqa_accuracy
from bench.scoring import Mark, by_rules, require_unique
from bench.short_answers import TEMPLATE, official, prompt
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Row, Source, Task
from genrecal.core.errors import DataError
from genrecal.core.files import read_json

FILE = "TextVQA_0.5.1_val.json"


def load(path: Path) -> list[Row]:
    """Read the JSON of the validation split, or the folder that holds it beside `train_images/`.

    Raises:
        DataError: no such file, a row or an image that cannot be used.
        BenchError: a question_id is there twice.
    """
    file = path / FILE if path.is_dir() else path
    content = read_json(file)
    listed = content.get("data") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise DataError("holds no list 'data'", where=file)
    rows = [_row(cells, file, number) for number, cells in enumerate(listed)]
    require_unique((row.id for row in rows), where=str(file))
    return rows


def vlmevalkit(row: Row, reply: str) -> Mark:
    """The kit's accuracy, which always normalises."""
    return Mark(hit=vqa_accuracy.vlmevalkit(reply, row.gold), read=reply[:40])


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval's accuracy, which always normalises, and more."""
    return Mark(hit=vqa_accuracy.lmms_evalai(reply, row.gold), read=reply[:40])


def _row(cells: Any, file: Path, number: int) -> Row:
    where = f"{file}, entry {number}"
    if not isinstance(cells, Mapping) or not {"question_id", "question", "image_id"} <= cells.keys():
        raise DataError("lacks one of question_id, question, image_id", where=where)
    answers = cells.get("answers")
    if not isinstance(answers, list) or not answers:
        raise DataError(
            "has no answers", where=where, fix="The test split has none; name the validation file"
        )
    folders = (file.parent / "train_images", file.parent / "images", file.parent)
    return Row(
        id=str(cells["question_id"]),
        question=str(cells["question"]),
        images={1: find_image(f"{cells['image_id']}.jpg", folders)},
        gold=tuple(str(answer) for answer in answers),
        split=str(cells.get("set_name") or "val"),
    )


TEXTVQA = Task(
    name="textvqa",
    title="TextVQA",
    version="0.5.1",
    language="en",
    template=TEMPLATE,
    rule="the VQA challenge's own code",
    source=Source(
        files=f"{FILE} with train_images/",
        licence="CC-BY-4.0",
        urls=(
            f"https://dl.fbaipublicfiles.com/textvqa/data/{FILE}",
            "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
        ),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules({OFFICIAL: official, VLMEVALKIT: vlmevalkit, LMMS: lmms}),
)
