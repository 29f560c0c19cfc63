"""Everything that lands on disk is atomic: a reader sees the old content or the new, never a part of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from genrecal.core.errors import GenrecalError


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces: builds hold files of many gigabytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` by a temporary file in the same folder, fsync and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        GenrecalError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GenrecalError("no such file", where=path) from None
    except IsADirectoryError:
        raise GenrecalError("is a folder, not a JSON file", where=path) from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise GenrecalError(f"is not valid JSON ({error})", where=path) from None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without following a link and without waiting for a pipe's writer.

    Raises:
        FileNotFoundError: there is none.
        GenrecalError: a link, a folder, a pipe, a socket or a device.
    """
    # Looked at before it is opened: opening alone makes some devices do something.
    if not stat.S_ISREG(os.lstat(path).st_mode):
        kind = "a link, not a regular file" if path.is_symlink() else "no regular file"
        raise GenrecalError(f"is {kind}", where=path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise GenrecalError("is a link, not a regular file", where=path) from None
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise GenrecalError("is no regular file", where=path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise GenrecalError("is no regular file", where=path)
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`.

    Raises:
        FileNotFoundError: there is none.
        GenrecalError: it is no regular file, or longer.
    """
    with open_regular(path) as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise GenrecalError(f"has more than {max_bytes:,} bytes", where=path)
    return data


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block ends well.

    An existing `target` is replaced whole; when the block raises, it stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        sync_tree(temporary)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            target.replace(old / target.name)
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
