"""Rows of conversations as a test set: what they ask, read as training data is, but an answer may be missing.

A row of which neither words nor an image can be read is an error: compared with nothing, no sample overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError
from genrecal.core.types import ImageSource
from genrecal.data.conversation import CONVERSATIONS, LISTS, conversation_of
from genrecal.data.formats import READERS, recognise
from genrecal.data.locate import ImageFolder
from genrecal.data.overlap import normalised
from genrecal.data.row_images import listed_images, references

ANSWERED = ("prompt", "question")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one row asks."""

    name: str
    texts: tuple[str, ...]
    images: Mapping[str, ImageSource]  # by a name that finds the image again


def asked_rows(path: Path) -> Iterator[Asked]:
    """Every row of a JSON list, or of JSON lines; image paths start at the file's folder and may leave it.

    Raises:
        DataError: the file, or one of its rows, cannot be used.
    """
    folder = ImageFolder(path.parent, confined=False)
    for row in READERS[recognise(path)]([path]):
        if isinstance(row.content, DataError):
            raise row.content
        yield _asked(row.content, folder, f"{path}, row {row.number}")


def _asked(row: Any, folder: ImageFolder, where: str) -> Asked:
    if not isinstance(row, dict):
        raise DataError("is no object with a conversation", where=where)
    said = []
    if any(row.get(name) for name in (*LISTS, *ANSWERED)):
        given = {name: value for name, value in row.items() if value is not None}
        said = conversation_of({"answer": "", "completion": "", **given}, where)
    texts = tuple(turn.text for turn in said if turn.role == "user")
    marks = [image for turn in said for image in turn.images]
    shown = [image for image in marks if image is not None]
    listed = [image for name in ("image", "images") for image in listed_images({name: row.get(name)})]
    if len(marks) > len(shown) and not listed:
        raise DataError("marks an image in its text and names none", where=where, fix="Known is `images`")
    images = references({}, [*shown, *listed], folder, where)
    if not images and not any(normalised(text) for text in texts):
        raise DataError(
            "asks nothing that could be looked for: no image, and no words",
            where=where,
            fix=f"Known are `image`, `images`, {', '.join(f'`{name}`' for name in CONVERSATIONS)}",
        )
    return Asked(name=where, texts=texts, images={str(image): image for image in images})
