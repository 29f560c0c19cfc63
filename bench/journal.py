"""Lines of JSON that are appended as results come, so that a run that was killed goes on where it stopped.

A line is handed to the system as soon as it is there, so killing the process loses none. To write it through
to the disk takes milliseconds, which many small answers would feel; that is done every few seconds and at the
end, so a power cut costs the answers of these seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrecal.core.errors import BenchError

SYNC_EVERY_S = 5.0


class Journal:
    """A journal that one process writes; `lines` is what it held when it was opened.

    Raises:
        BenchError: another process writes it, or a line that is not the last is no JSON mapping.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.lines = read_lines(path)
        except BlockingIOError:
            self._stream.close()
            raise BenchError(
                "another run is writing it", where=path, fix="Wait for its end, or name another folder"
            ) from None
        except BaseException:
            self._stream.close()
            raise
        self._synced = time.monotonic()

    def append(self, value: Mapping[str, Any]) -> None:
        self._stream.write(_line(value))
        self._stream.flush()
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            self._sync()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._stream.close()

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()


def append_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Append a line for each value and see them to the disk; a crash loses at most what was being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        for value in values:
            stream.write(_line(value))
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path, *, mend: bool = True) -> list[dict[str, Any]]:
    """Every whole line of a journal; a last one that a crash cut short is passed over.

    Args:
        mend: take it off the file, too; not while another process may be writing it.

    Raises:
        BenchError: another line is no JSON mapping.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if mend and whole != len(data):
        # What is appended next must start on a line of its own.
        os.truncate(path, whole)
    lines = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError):
            value = None
        if not isinstance(value, dict):
            raise BenchError(f"line {number} is no JSON", where=path, fix="Delete the file to answer anew")
        lines.append(value)
    return lines


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n"
