"""JSON lines, as ms-swift and OpenAI's clients write them: `{"messages": [...], "images": [...]}` a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError
from genrecal.data.rows import Row, Rows


def line_rows(path: Path) -> Rows:
    """One row for each line that is not blank; a line that is no JSON is a bad row, not a bad file.

    Raises:
        DataError: no such file.
    """
    if not path.is_file():
        raise DataError("is a folder, not a file of lines" if path.is_dir() else "no such file", where=path)
    return Rows(total=path.stat().st_size, read=lambda: _read(path))


def _read(path: Path) -> Iterator[Row]:
    done = number = 0
    with path.open("rb") as stream:
        for line_number, line in enumerate(stream, start=1):
            done += len(line)
            if line.strip():
                place = f"line {line_number}"
                content = _parsed(line, f"{path} {place}")
                yield Row(number=number, file=path, place=place, content=content, done=done)
                number += 1


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return DataError(f"is not valid JSON ({error})", where=where)
