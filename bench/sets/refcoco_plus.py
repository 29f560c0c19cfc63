"""RefCOCO+: the box that an expression means; right from an overlap (IoU) of one half on.

One row an expression; the score is the mean of the splits that are there. Its owners publish splits and no
parser of replies: "official" is lmms-eval's rule.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from bench.image_files import find_image
from bench.parquet import image_of, parquet_files, read_cells
from bench.prompt_parts import images_first
from bench.rules.boxes import Box, box_of, kit_box_of, overlap
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, ImageSource, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError
from genrecal.core.files import read_json
from genrecal.core.images import open_image

PROMPT = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, "
    "bottom-right y). All values are floating point numbers bounded between 0 and 1. Please provide the "
    "bounding box coordinate of the region this sentence describes: "
)
TEMPLATE = f"image, then {PROMPT}{{expression}}"
REFS, INSTANCES = "refs(unc).p", "instances.json"
SPLITS = ("val", "testA", "testB")
IOU = 0.5


def load(path: Path) -> list[Row]:
    """Read the owners' folder (`refs(unc).p`, `instances.json`, COCO's images), or parquet files.

    Raises:
        DataError: no such file, a row or an image that cannot be used.
        BenchError: an expression is there twice.
    """
    rows = _of_refs(path) if (path / REFS).is_file() else _of_parquet(path)
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """Image, how to write a box, the expression."""
    return images_first(row, PROMPT + row.question)


def lmms(row: Row, reply: str) -> Mark:
    """Four numbers in brackets, as shares of width and height; nothing else is read."""
    width, height = row.facts["size"]
    left, top, right, bottom = row.facts["box"]
    gold = (left / width, top / height, right / width, bottom / height)
    box = box_of(reply)
    hit = box is not None and overlap(gold, box) >= IOU
    return Mark(hit=float(hit), read=str(box or ""))


def vlmevalkit(row: Row, reply: str) -> Mark:
    """The kit's reading: many more forms, pixels below 1000 taken for per mille."""
    box = kit_box_of(reply, *row.facts["size"])
    hit = box is not None and overlap(box, row.facts["box"]) >= IOU
    return Mark(hit=float(hit), read=str(box or ""))


def _rows(
    name: str, split: str, expressions: list[str], box: Box, size: tuple[int, int], image: ImageSource
) -> list[Row]:
    return [
        Row(
            id=f"{split} {name}_{number}",
            question=expression,
            images={1: image},
            gold=str(list(box)),
            split=split,
            groups={"split": (split,)},
            facts={"box": box, "size": size},
        )
        for number, expression in enumerate(expressions)
    ]


def _of_parquet(path: Path) -> list[Row]:
    rows = []
    for file in parquet_files(path):
        split = next((split for split in SPLITS if file.name.lower().startswith(split.lower())), None)
        if split is None:
            continue
        for cells in read_cells(file, columns=("question_id", "image", "bbox", "answer")):
            where = f"{file}, '{cells['question_id']}'"
            image = image_of(cells["image"], where)
            size = open_image(image, name=where).size
            box = _corners(cells["bbox"], where)
            rows += _rows(
                str(cells["question_id"]), split, [str(one) for one in cells["answer"]], box, size, image
            )
    if not rows:
        raise DataError(f"holds no files of {', '.join(SPLITS)}", where=path)
    return rows


def _of_refs(folder: Path) -> list[Row]:
    """The owners' files; boxes and sizes stand in COCO's instances."""
    instances = read_json(folder / INSTANCES)
    boxes = {one["id"]: one["bbox"] for one in instances["annotations"]}
    images = {one["id"]: one for one in instances["images"]}
    folders = (folder / "train2014", folder / "images", folder.parent / "train2014", folder)
    rows = []
    for ref in _read_refs(folder / REFS):
        if ref.get("split") not in SPLITS:
            continue
        where = f"{folder / REFS}, ref {ref.get('ref_id')}"
        if ref["ann_id"] not in boxes or ref["image_id"] not in images:
            raise DataError(f"its box or its image is not in {INSTANCES}", where=where)
        image = images[ref["image_id"]]
        file = find_image(image["file_name"], folders)
        said = [str(sentence["sent"]) for sentence in ref["sentences"]]
        box = _corners(boxes[ref["ann_id"]], where)
        size = (image["width"], image["height"])
        rows += _rows(str(ref["ref_id"]), ref["split"], said, box, size, file)
    if not rows:
        raise DataError(f"holds no expressions of {', '.join(SPLITS)}", where=folder / REFS)
    return rows


class _DataOnly(pickle.Unpickler):
    """Lists, mappings, numbers and texts; a pickle that names code is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_refs(file: Path) -> list[Mapping[str, Any]]:
    try:
        refs = _DataOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise DataError(f"is no list of expressions ({error})", where=file) from None
    needed = {"ref_id", "ann_id", "image_id", "sentences", "split"}
    if not isinstance(refs, list) or not all(isinstance(ref, dict) and needed <= ref.keys() for ref in refs):
        raise DataError("is no list of expressions", where=file)
    return refs


def _corners(cell: Any, where: str) -> Box:
    """From left, top, width, height."""
    if not isinstance(cell, list | tuple) or len(cell) != 4:
        raise DataError(f"its box {cell!r} is not left, top, width, height", where=where)
    left, top, width, height = (float(number) for number in cell)
    return left, top, left + width, top + height


REFCOCO_PLUS = Task(
    name="refcoco_plus",
    title="RefCOCO+",
    version="unc",
    language="en",
    template=TEMPLATE,
    rule="IoU of one half; none published for replies, lmms-eval's",
    source=Source(
        files=f"{REFS}, {INSTANCES} and train2014/, or parquet files",
        licence="not stated; images: COCO's terms",
        repository="lmms-lab-encoder/RefCOCOplus",
        revision="a283082593c437efc2bb9876d43bc3075cd914fe",
        patterns=("data/*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules(
        {OFFICIAL: lmms, VLMEVALKIT: vlmevalkit, LMMS: lmms},
        macro=dict.fromkeys((OFFICIAL, VLMEVALKIT, LMMS), "split"),
    ),
)
