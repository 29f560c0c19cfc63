"""TSV files of MMBench and its kit: one question a row, options in columns, images in base64 or by row."""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.task import ImageSource, Row
from genrecal.core.errors import DataError
from genrecal.core.images import open_image

# A shorter image cell names the row that holds the image.
LONGEST_REFERENCE = 64
# pandas reads more words as absent ("None", "NA"); as options they are real, and a question needs them.
ABSENT = frozenset(("", "nan", "NaN"))
NO_SPLIT = "none"
GROUPS = ("l2-category", "l2_category", "category")


def read_rows(path: Path, *, columns: Sequence[str] = ("index", "question", "A", "B", "answer")) -> list[Row]:
    """The rows of a TSV, images decoded once.

    Args:
        path: the file.
        columns: what it must have besides images.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
    """
    cells = read_cells(path)
    for name in columns:
        if name not in cells[0]:
            raise DataError(f"has no column '{name}'", where=path, fix="Is this the TSV of that benchmark?")
    if "image" not in cells[0] and "image_path" not in cells[0]:
        raise DataError("has neither a column 'image' nor 'image_path'", where=path)
    images = _images(cells, path)
    return [_row(cell, images[cell["index"]], path) for cell in cells]


def read_cells(path: Path) -> list[dict[str, str]]:
    """The cells of a TSV; letter columns keep their case, other names are in lower case.

    Raises:
        DataError: it cannot be read, or holds no rows.
    """
    # A cell holds a whole image.
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t")
            header = next(reader, None)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise DataError("no such file", where=path, fix="Name the benchmark's TSV") from None
    except IsADirectoryError:
        raise DataError("is a folder, not a TSV", where=path, fix="Name the benchmark's TSV") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as a TSV ({error})", where=path) from None
    if not header or not rows:
        raise DataError("holds no questions", where=path)
    names = [name if name in string.ascii_uppercase else name.lower() for name in header]
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f"line {line} has {len(row)} cells, not {len(names)}", where=path)
    return [dict(zip(names, row, strict=True)) for _, row in rows]


def _row(cell: Mapping[str, str], images: Mapping[int, ImageSource], path: Path) -> Row:
    where = f"{path}, row {cell['index']}"
    if not cell["index"].isdecimal():
        raise DataError("its index is no whole number", where=where)
    given = {letter: cell[letter] for letter in string.ascii_uppercase if cell.get(letter, "") not in ABSENT}
    letters = "".join(given)
    if len(given) == 1 or letters != string.ascii_uppercase[: len(letters)]:
        raise DataError(f"has the options '{letters}', not A, B and so on", where=where)
    if given and cell["answer"] not in given:
        raise DataError(f"its answer '{cell['answer']}' is none of its options", where=where)
    hint = cell.get("hint", "")
    return Row(
        id=str(int(cell["index"])),
        question=cell["question"],
        images=images,
        gold=cell["answer"],
        options=given,
        split=cell["split"] if cell.get("split", "") not in ABSENT else NO_SPLIT,
        groups={name: (cell[name],) for name in GROUPS if cell.get(name, "") not in ABSENT},
        facts={} if hint in ABSENT else {"hint": hint},
    )


def _images(cells: Sequence[Mapping[str, str]], path: Path) -> dict[str, Mapping[int, ImageSource]]:
    """index -> its images by number; a reference to another row's image is followed."""
    if "image" not in cells[0]:
        return {cell["index"]: _files(cell["image_path"], path) for cell in cells}
    held = {
        cell["index"]: _decode(cell["image"], f"{path}, row {cell['index']}")
        for cell in cells
        if len(cell["image"]) > LONGEST_REFERENCE
    }
    images: dict[str, Mapping[int, ImageSource]] = {}
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


def _decode(cell: str, where: str) -> dict[int, ImageSource]:
    images: dict[int, ImageSource] = {}
    for number, text in enumerate(_several(cell), start=1):
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise DataError("its image is not valid base64", where=where) from None
        # Decoded once before the run: a broken image must not end it after hours.
        open_image(data, name=f"{where}, image")
        images[number] = data
    return images


def _files(cell: str, path: Path) -> dict[int, ImageSource]:
    """Images named in the column `image_path`, relative to the TSV's folder."""
    files = [path.parent / name for name in _several(cell)]
    for file in files:
        open_image(file)
    return dict(enumerate(files, start=1))
