"""MMBench's TSV: one row for each rotation of each question, images in base64 or by reference.

Rotations in the file are used; where it holds main rows only, they are made as the official tool makes them.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.circular import OFFSET, cannot_rotate, check_groups, is_main, rotate
from genrecal.core.errors import BenchError, DataError
from genrecal.core.images import open_image

# A shorter image cell names the row that holds the image.
LONGEST_REFERENCE = 64
# pandas reads more words as absent ("None", "NA"); as options they are real, and a question needs them.
ABSENT = frozenset(("", "nan", "NaN"))
NO_SPLIT = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rotation of one question."""

    index: int
    question: str
    hint: str | None
    options: Mapping[str, str]  # letter -> text
    answer: str  # a letter
    category: str | None
    ability: str | None  # the column l2-category
    split: str
    images: tuple[bytes, ...]  # encoded; shared by the rotations

    @property
    def id(self) -> str:
        return str(self.index)


def load(path: Path) -> list[Row]:
    """Read a TSV of MMBench, with its rotations or with rotations made here.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: some rotations of a question are missing.
    """
    cells = _cells(path)
    images = _images(cells, path)
    rows = [_row(cell, images[cell["index"]], path) for cell in cells]
    seen: set[int] = set()
    for row in rows:
        if row.index in seen:
            raise BenchError(f"index {row.index} stands there twice", where=path)
        seen.add(row.index)
    if all(is_main(row.index) for row in rows):
        rows = [turned for row in rows for turned in _rotations(row)]
    check_groups(((row.index, row.options) for row in rows), where=str(path))
    return rows


def _rotations(row: Row) -> list[Row]:
    if cannot_rotate(row.options):
        return [row]
    turns = [rotate(row.options, row.answer, turn) for turn in range(len(row.options))]
    return [
        replace(row, index=row.index + turn * OFFSET, options=turned.options, answer=turned.answer)
        for turn, turned in enumerate(turns)
    ]


def _cells(path: Path) -> list[dict[str, str]]:
    """The rows of the TSV; letter columns keep their case, other names are in lower case."""
    # A cell holds a whole image.
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t")
            header = next(reader, None)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise DataError("no such file", where=path, fix="Name MMBench's TSV") from None
    except IsADirectoryError:
        raise DataError("is a folder, not a TSV", where=path, fix="Name MMBench's TSV") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as a TSV ({error})", where=path) from None
    if not header or not rows:
        raise DataError("holds no questions", where=path)
    names = [name if name in string.ascii_uppercase else name.lower() for name in header]
    for name in ("index", "question", "A", "B", "answer"):
        if name not in names:
            raise DataError(f"has no column '{name}'", where=path, fix="Is this a TSV of MMBench?")
    if "image" not in names and "image_path" not in names:
        raise DataError("has neither a column 'image' nor 'image_path'", where=path)
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f"line {line} has {len(row)} cells, not {len(names)}", where=path)
    return [dict(zip(names, row, strict=True)) for _, row in rows]


def _row(cell: Mapping[str, str], images: tuple[bytes, ...], path: Path) -> Row:
    where = f"{path}, row {cell['index']}"
    try:
        index = int(cell["index"])
    except ValueError:
        raise DataError("its index is no whole number", where=where) from None
    if index < 0:
        raise DataError("its index is negative", where=where)
    given = {letter: cell[letter] for letter in string.ascii_uppercase if cell.get(letter, "") not in ABSENT}
    letters = "".join(given)
    if len(given) < 2 or letters != string.ascii_uppercase[: len(letters)]:
        raise DataError(f"has the options '{letters}', not A, B and so on", where=where)
    if cell["answer"] not in given:
        raise DataError(f"its answer '{cell['answer']}' is none of its options", where=where)
    return Row(
        index=index,
        question=cell["question"],
        hint=_optional(cell, "hint"),
        options=given,
        answer=cell["answer"],
        category=_optional(cell, "category"),
        ability=_optional(cell, "l2-category"),
        split=_optional(cell, "split") or NO_SPLIT,
        images=images,
    )


def _optional(cell: Mapping[str, str], name: str) -> str | None:
    return None if cell.get(name, "") in ABSENT else cell[name]


def _images(cells: Sequence[Mapping[str, str]], path: Path) -> dict[str, tuple[bytes, ...]]:
    """index -> its decoded images; a reference to another row's image is followed."""
    if "image" not in cells[0]:
        return {cell["index"]: _read_files(cell["image_path"], path) for cell in cells}
    held = {
        cell["index"]: _decode(cell["image"], f"{path}, row {cell['index']}")
        for cell in cells
        if len(cell["image"]) > LONGEST_REFERENCE
    }
    images = {}
    for cell in cells:
        target = cell["index"] if cell["index"] in held else cell["image"]
        if target not in held:
            raise DataError(
                f"its image cell '{target}' is no image and names no row that holds one",
                where=f"{path}, row {cell['index']}",
            )
        images[cell["index"]] = held[target]
    return images


def _several(cell: str) -> list[str]:
    """A cell with several images holds a Python list of strings."""
    if cell.startswith("["):
        try:
            listed = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            return [cell]
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return listed
    return [cell]


def _decode(cell: str, where: str) -> tuple[bytes, ...]:
    images = []
    for text in _several(cell):
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise DataError("its image is not valid base64", where=where) from None
        # Decoded once before the run: a broken image must not end it after hours.
        open_image(data, name=f"{where}, image")
        images.append(data)
    return tuple(images)


def _read_files(cell: str, path: Path) -> tuple[bytes, ...]:
    """Images named in the column `image_path`, relative to the TSV's folder."""
    files = [path.parent / name for name in _several(cell)]
    for file in files:
        open_image(file)
    return tuple(file.read_bytes() for file in files)
