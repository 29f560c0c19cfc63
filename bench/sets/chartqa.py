"""ChartQA: short answers about charts, written by people and by a model; relaxed accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.image_files import require_image_file
from bench.parquet import image_of, parquet_files, read_cells
from bench.rules.relaxed_accuracy import is_right
from bench.scoring import Mark, by_rules
from bench.short_answers import TEMPLATE, prompt
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Row, Source, Task
from genrecal.core.errors import DataError
from genrecal.core.files import read_json

HUMAN, AUGMENTED = "human", "augmented"


def load(path: Path) -> list[Row]:
    """Read the owners' folder (`test_human.json`, `test_augmented.json`, `png/`), or parquet files.

    Raises:
        DataError: no such file, a row or an image that cannot be used.
    """
    files = {part: path / f"test_{part}.json" for part in (HUMAN, AUGMENTED)}
    if any(file.is_file() for file in files.values()):
        return [row for part, file in files.items() for row in _of_json(file, part)]
    rows: list[Row] = []
    for file in parquet_files(path, part="test"):
        for cells in read_cells(file, columns=("question", "answer", "image", "type")):
            where = f"{file}, row {len(rows)}"
            part = HUMAN if "human" in str(cells["type"]) else AUGMENTED
            rows.append(
                _row(
                    f"{part}_{len(rows)}",
                    part,
                    cells["question"],
                    cells["answer"],
                    image_of(cells["image"], where),
                )
            )
    return rows


def official(row: Row, reply: str) -> Mark:
    """pix2struct's relaxed accuracy, on the reply as it is."""
    return Mark(hit=float(is_right(reply, str(row.gold))), read=reply[:40])


def vlmevalkit(row: Row, reply: str) -> Mark:
    """The kit strips the reply first."""
    return official(row, reply.strip())


def _of_json(file: Path, part: str) -> list[Row]:
    content = read_json(file)
    if not isinstance(content, list) or not content:
        raise DataError("holds no questions", where=file)
    rows = []
    for number, cells in enumerate(content):
        where = f"{file}, row {number}"
        if not isinstance(cells, dict) or not all(
            isinstance(cells.get(name), str) for name in ("imgname", "query", "label")
        ):
            raise DataError("has no texts 'imgname', 'query' and 'label'", where=where)
        image = require_image_file(file.parent / "png" / cells["imgname"])
        rows.append(_row(f"{part}_{number}", part, cells["query"], cells["label"], image))
    return rows


def _row(name: str, part: str, question: Any, answer: Any, image: Path | bytes) -> Row:
    # The hub's file holds each answer in a list of one.
    gold = answer[0] if isinstance(answer, list) and answer else answer
    return Row(
        id=name,
        question=str(question),
        images={1: image},
        gold=str(gold),
        split="test",
        groups=_groups(part),
    )


def _groups(part: str) -> Mapping[str, tuple[str, ...]]:
    return {"part": (part,)}


CHARTQA = Task(
    name="chartqa",
    title="ChartQA",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="pix2struct's relaxed accuracy",
    source=Source(
        files="the folder test/ with its JSON files and png/, or parquet files",
        licence="GPL-3.0",
        repository="lmms-lab-encoder/ChartQA",
        revision="9e63b7df1592a1c2158e735cc1725454aef0d6d9",
        patterns=("data/test-*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules({OFFICIAL: official, VLMEVALKIT: vlmevalkit, LMMS: official}),
)
