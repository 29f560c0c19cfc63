"""JSON lists of conversations (LLaVA, ShareGPT), read row by row: a list of millions does not fit in memory.

[{"id", "image" or "images", "conversations" or "messages", "domain"}, …]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError
from genrecal.core.types import Sample
from genrecal.data.conversation import RowRules, Turns, samples_of
from genrecal.data.locate import ImageFolder
from genrecal.data.row_images import IMAGE_MARK
from genrecal.data.rows import Row, Rows

__all__ = ["IMAGE_MARK", "json_rows", "read_llava"]

BLOCK = 1 << 22  # characters read at a time
_BLANK = " \t\r\n"


def read_llava(
    path: Path, *, images: Path | None = None, domain: str | None = None, turns: Turns = "last"
) -> list[Sample]:
    """Every sample of one JSON list; for small files, and without a look whether the images are there.

    Args:
        path: the JSON file.
        images: the folder that image paths start from; default: the folder of `path`.
        domain: the domain of rows that name none of their own.
        turns: "last": the last answer of a conversation is learned; "each": every answer, as samples.

    Raises:
        DataError: the file or one of its rows cannot be used; the row is named.
    """
    root = images if images is not None else path.parent
    rules = RowRules(
        source=str(path), start=path.parent, folder=ImageFolder(root), domain=domain, turns=turns
    )
    return [sample for row in json_rows(path) for sample in samples_of(row, rules)]


def json_rows(path: Path) -> Rows:
    """The rows of a JSON list; where the JSON breaks off, what stood before has been read.

    Raises:
        DataError: no such file, no JSON, no list, or an empty one.
    """
    if not path.exists():
        raise DataError("no such file", where=path)
    if path.is_dir():
        raise DataError("is a folder, not a JSON file", where=path)
    return Rows(total=path.stat().st_size, read=lambda: _read(path))


def _read(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        text = _Text(stream, path)
        if text.next_character() != "[":
            text.fail_unless_json()
            raise DataError("is not a non-empty JSON list of conversations", where=path)
        text.start += 1
        number = 0
        if text.next_character() == "]":
            raise DataError("is not a non-empty JSON list of conversations", where=path)
        while True:
            content = text.value()
            done = text.read_characters
            yield Row(number=number, file=path, place=f"row {number}", content=content, done=done)
            number += 1
            mark = text.next_character()
            text.start += 1
            if mark == "]":
                break
            if mark != ",":
                text.fail("a row is followed by neither ',' nor ']'")
        if text.next_character():
            text.fail("text follows the list")


class _Text:
    """A window that moves over a file: one value of the list at a time."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream, self.path = stream, path
        self.held, self.start, self.ended = "", 0, False
        self.passed = 0  # characters before `held`
        self.decoder = json.JSONDecoder()

    @property
    def read_characters(self) -> int:
        return self.passed + self.start

    def next_character(self) -> str:
        """The next one that is not blank, not yet taken; empty at the end."""
        while True:
            while self.start < len(self.held) and self.held[self.start] in _BLANK:
                self.start += 1
            if self.start < len(self.held):
                return self.held[self.start]
            if not self._more(BLOCK):
                return ""

    def value(self) -> Any:
        """Decode one value; more is read as long as it is not whole."""
        self.next_character()
        block = BLOCK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.held, self.start)
            except json.JSONDecodeError as error:
                if not self._more(block):
                    self.start = error.pos
                    self.fail(error.msg)
                block *= 2
                continue
            except RecursionError:
                self.fail("nested too deeply")
            # A number that touches the window's end may go on behind it.
            if end == len(self.held) and self._more(block):
                continue
            self.start = end
            return value

    def fail(self, what: str) -> None:
        raise DataError(f"is not valid JSON ({what}, near character {self.read_characters})", where=self.path)

    def fail_unless_json(self) -> None:
        while self._more(BLOCK):
            pass
        try:
            json.loads(self.held)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"is not valid JSON ({error})", where=self.path) from None

    def _more(self, characters: int) -> bool:
        if self.ended:
            return False
        try:
            block = self.stream.read(characters)
        except UnicodeDecodeError as error:
            raise DataError(f"is not valid JSON ({error})", where=self.path) from None
        self.passed += self.start
        self.held, self.start = self.held[self.start :] + block, 0
        self.ended = not block
        return not self.ended
