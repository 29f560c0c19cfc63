"""A build's files against its manifest: exactly those that it names, each a regular file with its SHA-256.

    manifest.json      names every other file, with its size and SHA-256
    manifest.sig       may stand beside it (trust.py); nothing else may

What is hashed is what is used: texts are parsed from the bytes that were hashed, and of files that
ONNX Runtime opens by name, `require_unchanged` compares afterwards that they are still the ones hashed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrecal.core.errors import BuildError, GenrecalError
from genrecal.core.files import open_regular

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MAX_FILES = 4096
MAX_BYTES = 2**50
# Of a file that is parsed whole.
MAX_TEXT_BYTES = 16 * 2**20
# Letters, digits and a few signs, as on any file system: no separator but "/", no "..", no drive, no blank.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]{0,127}", re.ASCII)
# Names that Windows keeps for devices, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COPY_AGAIN = "Copy the whole folder again"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """By which the system tells a file: another file, or another content, has another one."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A folder that is what its manifest says."""

    folder: Path
    identities: Mapping[str, Identity]
    """Of every file, as it was when it was hashed."""

    def require_unchanged(self) -> None:
        """Raise a BuildError if a file was replaced or written to since it was hashed.

        A file that was put in another's place and taken away again shows too: moving changes its time.
        """
        for name, identity in self.identities.items():
            try:
                found = _identity(os.lstat(self.folder / name))
            except OSError:
                found = None
            if found != identity:
                raise BuildError(
                    f"file '{name}' was changed while the build was opened",
                    where=self.folder,
                    fix="Open it again when nobody writes to it",
                )


def safe_name(name: Any) -> bool:
    """Whether `name` is a path below a folder, with forward slashes, that means the same everywhere."""
    if not isinstance(name, str) or len(name) > 512:
        return False
    parts = name.split("/")
    return len(parts) <= 8 and all(
        _PART.fullmatch(part) and not part.endswith(".") and not _DEVICES.fullmatch(part) for part in parts
    )


def check_names(manifest: Mapping[str, Any], folder: Path) -> None:
    """Check the manifest's list of files, before any of them is looked at.

    Raises:
        BuildError: a name that leads elsewhere or that two files share, a size or SHA-256 that is none.
    """
    files = manifest["files"]
    if len(files) > MAX_FILES:
        raise BuildError(f"its {MANIFEST} names {len(files):,} files, at most {MAX_FILES:,}", where=folder)
    seen: dict[str, str] = {}
    for name, entry in files.items():
        if not safe_name(name) or name.lower() in (MANIFEST, SIGNATURE):
            raise BuildError(f"its {MANIFEST} names a file {ascii(name)[:120]}", where=folder)
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise BuildError(f"its {MANIFEST} names '{other}' and '{name}'", where=folder)
        if entry.keys() != {"bytes", "sha256"}:
            raise BuildError(f"its {MANIFEST} says other things of '{name}' than it may", where=folder)
        size, digest = entry["bytes"], entry["sha256"]
        if type(size) is not int or not 0 <= size <= MAX_BYTES:
            raise BuildError(f"its {MANIFEST} gives '{name}' no size", where=folder)
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise BuildError(f"its {MANIFEST} gives '{name}' no SHA-256", where=folder)


def check_files(
    manifest: Mapping[str, Any], folder: Path, *, texts: Collection[str], hashed: bool
) -> tuple[Sealed, dict[str, bytes]]:
    """Compare a folder with a manifest whose names were checked; gives `texts` with their content.

    Args:
        manifest: what `parse_manifest` gave.
        folder: where the files lie, without a link on the way.
        texts: names of files to keep, of those that the manifest names; each read once.
        hashed: read every file and compare; without it, only `texts` are read, and other files may lie there.

    Raises:
        BuildError: a file is missing, is no regular file, has another size or SHA-256, or is not named.
    """
    files = manifest["files"]
    if hashed:
        for name in _walk(folder):
            if name not in files and name not in (MANIFEST, SIGNATURE):
                raise BuildError(
                    f"holds '{ascii(name)[1:-1][:120]}', which its {MANIFEST} does not name",
                    where=folder,
                    fix="Take it out, or copy the whole folder again",
                )
    identities: dict[str, Identity] = {}
    kept: dict[str, bytes] = {}
    for name, entry in files.items():
        identity, content = _read(folder, name, entry, keep=name in texts, hashed=hashed)
        identities[name] = identity
        if content is not None:
            kept[name] = content
    return Sealed(folder=folder, identities=identities), kept


def _walk(folder: Path) -> Iterator[str]:
    """The names of all files below `folder`; no link is followed."""
    pending, count = [""], 0
    while pending:
        base = pending.pop()
        with os.scandir(folder / base) as entries:
            for entry in entries:
                name = f"{base}{entry.name}"
                count += 1
                if count > 2 * MAX_FILES or name.count("/") > 8:
                    raise BuildError(f"holds more files or folders than {MAX_FILES:,}", where=folder)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    yield name


def _read(
    folder: Path, name: str, entry: Mapping[str, Any], *, keep: bool, hashed: bool
) -> tuple[Identity, bytes | None]:
    try:
        require_folders(folder, name)
        with open_regular(folder / name) as stream:
            identity = _identity(os.fstat(stream.fileno()))
            if keep and identity.bytes > MAX_TEXT_BYTES:
                raise GenrecalError(f"has {identity.bytes:,} bytes, more than {MAX_TEXT_BYTES:,}")
            differs = identity.bytes != entry["bytes"] if hashed else False
            pieces, digest, left = [], hashlib.sha256(), identity.bytes
            # No more than its size: a file that grows while it is read must not be read forever.
            while not differs and (hashed or keep) and left > 0 and (piece := stream.read(min(_PIECE, left))):
                digest.update(piece)
                left -= len(piece)
                if keep:
                    pieces.append(piece)
            differs = differs or (hashed and (left > 0 or digest.hexdigest() != entry["sha256"]))
            if not differs and _identity(os.fstat(stream.fileno())) != identity:
                differs = True
    except (FileNotFoundError, NotADirectoryError):
        raise BuildError(f"file '{name}' is missing", where=folder, fix=_COPY_AGAIN) from None
    except GenrecalError as error:
        raise BuildError(f"'{name}' {error.what}", where=folder, fix=_COPY_AGAIN) from None
    except OSError as error:
        raise BuildError(f"file '{name}' cannot be read ({error.strerror})", where=folder) from None
    if differs:
        raise BuildError(
            f"file '{name}' differs from its SHA-256 in {MANIFEST}", where=folder, fix=_COPY_AGAIN
        )
    return identity, b"".join(pieces) if keep else None


def require_folders(folder: Path, name: str) -> None:
    """Raise a GenrecalError if the way to a file leads over a link: it could lead out of the folder."""
    way = folder
    for part in name.split("/")[:-1]:
        way = way / part
        if not stat.S_ISDIR(os.lstat(way).st_mode):
            raise GenrecalError("lies behind a link or a file, not in a folder")


def _identity(status: os.stat_result) -> Identity:
    return Identity(
        device=status.st_dev,
        inode=status.st_ino,
        bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
    )
