"""Parquet files as the Hugging Face hub has them: one question a row, images as bytes."""

from __future__ import annotations

import ast
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.task import ImageSource
from genrecal.core.errors import DataError
from genrecal.core.images import open_image


def parquet_files(path: Path, *, part: str | None = None) -> list[Path]:
    """One file, or all in a folder; those whose name holds `part`, where some do.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError("no such file or folder", where=path, fix="Name a parquet file or their folder")
    files = sorted(path.rglob("*.parquet"))
    files = [file for file in files if part and part in file.name] or files
    if not files:
        raise DataError("holds no parquet file", where=path)
    return files


def read_cells(path: Path, *, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a parquet file.

    Raises:
        DataError: it cannot be read, a column is missing, or it holds no rows.
    """
    # Imported here: a run without parquet files does not need pyarrow.
    import pyarrow
    import pyarrow.parquet

    try:
        # A file with its handle: a folder named "a=b" is no partition.
        with path.open("rb") as stream:
            table = pyarrow.parquet.read_table(stream)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot be read as parquet ({' '.join(str(error).split())})", where=path) from None
    for column in columns:
        if column not in table.column_names:
            raise DataError(
                f"has no column '{column}'", where=path, fix="Is this the file of that benchmark?"
            )
    if not table.num_rows:
        raise DataError("holds no questions", where=path)
    return list(table.to_pylist())


def image_of(cell: Any, where: str) -> ImageSource:
    """The encoded bytes of an image cell.

    Raises:
        DataError: there are none, or they cannot be decoded.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise DataError("holds no image bytes", where=where)
    # Decoded once before the run: a broken image must not end it after hours.
    open_image(data, name=where)
    return data


def numbered_images(row: Mapping[str, Any], where: str, *, most: int) -> dict[int, ImageSource]:
    """The cells `image_1` to `image_{most}` that hold one."""
    return {
        number: image_of(row[f"image_{number}"], f"{where}, image_{number}")
        for number in range(1, most + 1)
        if row.get(f"image_{number}") is not None
    }


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A cell of text.

    Raises:
        DataError: it is none.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"has no text '{name}'", where=where)
    return value


def options_of(cell: Any, where: str) -> dict[str, str]:
    """letter -> text, from a list or from a Python list in a text.

    Raises:
        DataError: it is neither, or has no options or more than letters.
    """
    options = cell
    if isinstance(cell, str):
        try:
            options = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            options = None
    if not isinstance(options, list) or not 0 < len(options) <= len(string.ascii_uppercase):
        raise DataError(f"its options {str(cell)[:60]!r} are no Python list", where=where)
    return dict(zip(string.ascii_uppercase, (str(option) for option in options), strict=False))
