"""Rows as a file holds them, before they are understood: what every reader of a format yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a source."""

    number: int  # from 0, in the order of the files
    file: Path  # that holds it, or its folder for `datasets`
    place: str  # in the file
    content: Any  # plain values, or a DataError where the row itself cannot be read
    done: int  # of Rows.total, with this row

    @property
    def where(self) -> str:
        """For errors."""
        return f"{self.file} {self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """All rows of a source, to be read once or again, and how much there is to read."""

    total: int  # bytes or rows: the unit of Row.done, for the ETA
    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.read()
