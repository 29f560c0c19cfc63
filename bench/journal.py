"""Lines of JSON that are appended as results come, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genrecal.core.errors import BenchError


def append_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """Append a line for each value and see them to the disk; a crash loses at most what was being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        for value in values:
            stream.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a journal; a last line that a crash cut short is taken off the file.

    Raises:
        BenchError: another line is no JSON mapping.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        # What is appended next must start on a line of its own.
        os.truncate(path, whole)
    lines = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            value = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError):
            value = None
        if not isinstance(value, dict):
            raise BenchError(f"line {number} is no JSON", where=path, fix="Delete the file to answer anew")
        lines.append(value)
    return lines
