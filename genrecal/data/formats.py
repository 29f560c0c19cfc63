"""The formats of training data: which files a source means, which format they have, and who reads it."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from genrecal.core.errors import DataError
from genrecal.data.llava import json_rows
from genrecal.data.messages import line_rows
from genrecal.data.rows import Rows
from genrecal.data.tables import dataset_rows, parquet_rows
from genrecal.data.tars import tar_rows

Format = Literal["llava", "sharegpt", "messages", "datasets", "parquet", "webdataset"]

READERS: dict[str, Callable[[Sequence[Path]], Rows]] = {
    "llava": lambda files: json_rows(files[0]),
    "sharegpt": lambda files: json_rows(files[0]),
    "messages": lambda files: line_rows(files[0]),
    "datasets": lambda files: dataset_rows(files[0]),
    "parquet": parquet_rows,
    "webdataset": tar_rows,
}
# Formats whose source may be several files.
SHARDED = ("parquet", "webdataset")
# What a row of a named format may say beside; where no format is named, two of a kind clash.
IGNORED: dict[str, tuple[str, ...]] = {
    "llava": ("messages", "images"),
    "sharegpt": ("image",),
    "messages": ("conversations", "image"),
}
ENDINGS = {".jsonl": "messages", ".ndjson": "messages", ".parquet": "parquet", ".tar": "webdataset"}
SPLITS = ("train", "validation", "valid", "val", "dev", "test")


def recognise(path: Path) -> Format:
    """The format of what lies at `path`: a file, a folder, or a pattern with `*` or `{000..099}`.

    Raises:
        DataError: nothing is there, or it could be more than one format.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.suffix in ENDINGS:
        return ENDINGS[path.suffix]  # type: ignore[return-value]
    if path.suffix == ".json":
        return _of_json(path)
    if not path.exists() and not _is_pattern(path):
        raise DataError("no such file or folder", where=path)
    raise _unclear(path, f"its ending '{path.suffix}' tells no format")


def files_of(path: Path, kind: Format) -> tuple[Path, ...]:
    """The files that a source of the format `kind` is read from, or its folder for `datasets`.

    Raises:
        DataError: there are none, or they belong to several splits.
    """
    if kind not in SHARDED:
        if _is_pattern(path) and not path.exists():
            raise DataError(f"is a pattern; '{kind}' is one file", where=path, fix="Give a source for each")
        return (path,)
    if path.is_file():
        return (path,)
    ending = "*.parquet" if kind == "parquet" else "*.tar"
    files = sorted(path.rglob(ending)) if path.is_dir() else _expanded(path)
    if not files:
        raise DataError(f"there is no {ending} here", where=path)
    splits = {_split(file.relative_to(path)) for file in files} - {None} if path.is_dir() else set()
    if len(splits) > 1:
        raise DataError(
            f"holds files of several splits ({', '.join(sorted(map(str, splits)))})",
            where=path,
            fix="Name one split's folder, or its files, as FOLDER/train-*",
        )
    return tuple(files)


def _split(file: Path) -> str | None:
    """What its name tells, or its folders' names: `train-00000.parquet`, `partial-train/0000.parquet`."""
    for part in reversed(file.parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLITS:
                return word
    return None


def named_from(path: Path, kind: Format) -> Path:
    """The folder that the names of a source's files start from: where its path begins to be several files."""
    if path.is_dir() and kind in SHARDED:
        return path
    start = Path(os.path.abspath(path)).parent  # `.` and `..` have a name as well
    while not path.exists() and _is_pattern(start):
        start = start.parent
    return start


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?{[")


def _expanded(path: Path) -> list[Path]:
    """Braces as WebDataset expands them, then `*`, `?` and `[…]`."""
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(str(path)))
    except ValueError as error:
        raise DataError(f"is no pattern ({error})", where=path) from None
    files = []
    for name in names:
        found = sorted(glob.glob(name))
        if not found:
            raise DataError("no such file", where=name)
        files += [Path(one) for one in found]
    return files


def _of_folder(path: Path) -> Format:
    found: list[Format] = []
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found.append("datasets")
    elif next(path.rglob("*.parquet"), None):
        found.append("parquet")
    if next(path.rglob("*.tar"), None):
        found.append("webdataset")
    if len(found) == 1:
        return found[0]
    if found:
        raise _unclear(path, f"it could be {' or '.join(found)}")
    raise DataError(
        "holds no data set on disk, no parquet files and no tars",
        where=path,
        fix="Name a JSON or JSON lines file itself",
    )


def _of_json(path: Path) -> Format:
    """A list (LLaVA and ShareGPT are read alike), or, under the wrong ending, JSON lines."""
    if _is_pattern(path) and not path.exists():
        return "llava"
    if not path.is_file():
        raise DataError("no such file", where=path)
    with path.open("rb") as stream:
        start = stream.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        return "llava"
    first = start.split(b"\n", 1)[0]
    try:
        if len(start) > len(first) and isinstance(json.loads(first), dict):
            return "messages"
    except ValueError:
        pass
    raise _unclear(path, "it is neither a JSON list of conversations nor JSON lines")


def _unclear(path: Path, why: str) -> DataError:
    return DataError(
        f"the format is not clear: {why}", where=path, fix=f"Give the source `format`: {', '.join(READERS)}"
    )
