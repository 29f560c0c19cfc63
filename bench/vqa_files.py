"""The VQA challenge's JSON files: questions, annotations of ten people, COCO's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.image_files import find_image
from bench.scoring import require_unique
from bench.task import Row
from genrecal.core.errors import DataError
from genrecal.core.files import read_json

SPLIT = "val2014"


def read_vqa(path: Path) -> list[Row]:
    """Read the folder that holds both files of val2014 and its images, or the file of questions in it.

    Raises:
        DataError: a file or an image is missing, or of another form; a question without annotation.
        BenchError: a question_id is there twice.
    """
    folder = path if path.is_dir() else path.parent
    questions = _list(path if path.is_file() else _file(folder, "questions"), "questions")
    file = _file(folder, "annotations")
    annotations = {int(one["question_id"]): one for one in _list(file, "annotations")}
    images = (folder / SPLIT, folder / "images", folder)
    rows = []
    for one in questions:
        name = int(one["question_id"])
        if name not in annotations:
            raise DataError(f"has no annotation of question {name}", where=file)
        annotation = annotations[name]
        image = f"COCO_{SPLIT}_{int(one['image_id']):012d}.jpg"
        rows.append(
            Row(
                id=str(name),
                question=str(one["question"]),
                images={1: find_image(image, images)},
                gold=tuple(str(answer["answer"]) for answer in annotation["answers"]),
                split=SPLIT,
                groups={
                    kind: (str(annotation[kind.replace(" ", "_")]),)
                    for kind in ("answer type", "question type")
                    if kind.replace(" ", "_") in annotation
                },
            )
        )
    require_unique((row.id for row in rows), where=str(path))
    return rows


def _file(folder: Path, what: str) -> Path:
    found = sorted(folder.glob(f"*{SPLIT}*{what}.json"))
    if len(found) != 1:
        raise DataError(
            f"{len(found)} files are called *{SPLIT}*{what}.json",
            where=folder,
            fix="Name the folder with the questions, annotations and images of one set",
        )
    return found[0]


def _list(file: Path, what: str) -> list[dict[str, Any]]:
    content = read_json(file)
    listed = content.get(what) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise DataError(f"holds no list '{what}'", where=file)
    needed = {"question_id", "answers" if what == "annotations" else "image_id"}
    for number, one in enumerate(listed):
        if not isinstance(one, dict) or not needed <= one.keys():
            raise DataError(f"entry {number} lacks one of {', '.join(sorted(needed))}", where=file)
    return listed
