"""Builds on a device, side by side: the one in use, and the one before it to roll back to.

    SLOT/builds/DIGEST/    a verified copy; DIGEST is the SHA-256 of its manifest
    SLOT/current           -> builds/DIGEST, a link that is switched in one step
    SLOT/history.json      the builds in the order in which they came; `rollback` leads to the one before

Killed at any moment, `current` leads to a whole build: the old one until the switch, the new one after it.
Programs open SLOT/current like any build folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.build import open_build
from edge.sealed import MANIFEST, SIGNATURE, check_names, require_folders, safe_name
from edge.trust import sign_manifest
from genrecal.core.console import console
from genrecal.core.errors import BuildError, GenrecalError
from genrecal.core.files import (
    open_regular,
    read_json,
    read_regular,
    sha256_bytes,
    sync_folder,
    sync_tree,
    write_json,
)
from genrecal.core.manifest import MAX_BYTES, parse_manifest

BUILDS = "builds"
CURRENT = "current"
HISTORY = "history.json"
_LOCK = ".lock"
_TEMPORARY = ".tmp-"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What a device has installed; names of folders in SLOT/builds."""

    current: str | None
    previous: str | None
    """Where `rollback` leads."""


def read_slot(slot: Path) -> Slot:
    """What is installed at `slot`.

    Raises:
        BuildError: `current` is no link to a build of this slot.
    """
    link = slot / CURRENT
    if not link.is_symlink():
        if link.exists():
            raise BuildError(f"'{CURRENT}' is no link", where=slot, fix="Name a folder for builds alone")
        return Slot(current=None, previous=None)
    folder, _, name = os.readlink(link).partition("/")
    if folder != BUILDS or not safe_name(name) or "/" in name or not (slot / BUILDS / name).is_dir():
        raise BuildError(
            f"'{CURRENT}' leads to no build of this slot", where=slot, fix="Install a build again"
        )
    history = _history(slot)
    before = history[: history.index(name)] if name in history else []
    kept = [entry for entry in before if (slot / BUILDS / entry).is_dir()]
    return Slot(current=name, previous=kept[-1] if kept else None)


def install(
    build: Path, slot: Path, *, manifest_sha256: str | None = None, trusted_keys: Sequence[Path] = ()
) -> Slot:
    """Copy a build into a slot, check the copy and switch to it; the build in use becomes the way back.

    Args:
        build: a build folder, for instance on a stick or a share.
        slot: a folder of the device; made where it is missing.
        manifest_sha256: as in `open_build`.
        trusted_keys: as in `open_build`.

    Raises:
        BuildError: the build cannot be trusted or is damaged; `current` stays as it was.
    """
    (slot / BUILDS).mkdir(parents=True, exist_ok=True)
    with _locked(slot):
        before = read_slot(slot)
        with _temporary(slot) as copy:
            digest = _copy(build, copy)
            try:
                open_build(copy, manifest_sha256=manifest_sha256, trusted_keys=trusted_keys)
            except BuildError as error:  # of the copy, which nobody knows
                raise BuildError(error.what, where=build, fix=error.fix) from None
            name = _place(copy, slot, digest, before)
        kept = [entry for entry in (before.current,) if entry is not None and entry != name]
        if before.current == name and before.previous is not None:
            kept = [before.previous]  # installed again: the way back stays
        # First the way back, then the switch: between the two, `current` still finds its place in it.
        older = [before.previous] if before.previous and before.previous not in (*kept, name) else []
        write_json(slot / HISTORY, {"builds": [*older, *kept, name]})
        _switch(slot, name)
        _prune(slot, {name, *kept})
        return read_slot(slot)


def rollback(slot: Path, *, trusted_keys: Sequence[Path] = ()) -> Slot:
    """Switch to the build before the current one, after it was checked.

    Raises:
        BuildError: there is none, or it is damaged; `current` stays as it was.
    """
    if not (slot / CURRENT).is_symlink():
        raise BuildError("has no build installed", where=slot, fix="Name the folder of `genrecal install`")
    with _locked(slot):
        found = read_slot(slot)
        if found.previous is None:
            raise BuildError("keeps no earlier build to roll back to", where=slot)
        open_build(slot / BUILDS / found.previous, trusted_keys=trusted_keys)
        _switch(slot, found.previous)
        return read_slot(slot)


def _copy(build: Path, target: Path) -> str:
    """Copy what the manifest names and nothing else; gives the manifest's SHA-256."""
    if not build.is_dir():
        raise BuildError("no such build folder", where=build, fix="Name the folder of a finished build")
    source = build.resolve()
    try:
        data = read_regular(source / MANIFEST, max_bytes=MAX_BYTES)
        manifest = parse_manifest(data, build, kind="build")
        check_names(manifest, build)
        need = sum(entry["bytes"] for entry in manifest["files"].values())
        free = shutil.disk_usage(target).free
        if need > free:
            raise BuildError(
                f"takes {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free", where=build, fix="Free some disk"
            )
        for name, entry in manifest["files"].items():
            require_folders(source, name)
            _copy_file(source / name, target / name, entry["bytes"], build)
        (target / MANIFEST).write_bytes(data)
        if (source / SIGNATURE).exists():
            _copy_file(source / SIGNATURE, target / SIGNATURE, _PIECE, build)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(error.filename or source / MANIFEST)
        name = missing.relative_to(source).as_posix() if missing.is_relative_to(source) else str(missing)
        raise BuildError(
            f"file '{name}' is missing", where=build, fix="Copy the whole folder again"
        ) from None
    except BuildError:
        raise
    except GenrecalError as error:
        raise BuildError(error.what, where=error.where, fix=error.fix) from None
    return sha256_bytes(data)


def _copy_file(source: Path, target: Path, most: int, build: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(source) as reader, target.open("xb") as writer:
        while piece := reader.read(min(_PIECE, most + 1)):
            most -= len(piece)
            if most < 0:
                raise BuildError(f"file '{source.name}' is larger than its manifest says", where=build)
            writer.write(piece)


def _place(copy: Path, slot: Path, digest: str, before: Slot) -> str:
    """Put a checked copy where it stays; gives its name."""
    name, number = digest, 0
    while (slot / BUILDS / name).exists():
        if name != before.current and name != before.previous:
            shutil.rmtree(slot / BUILDS / name)  # left over by nobody knows whom
            break
        try:
            open_build(slot / BUILDS / name)
            return name  # the same build, whole
        except BuildError:
            number += 1  # the same build, damaged since; it stays until nobody uses it
            name = f"{digest}.{number}"
    sync_tree(copy)
    copy.rename(slot / BUILDS / name)
    sync_folder(slot / BUILDS)
    return name


def _switch(slot: Path, name: str) -> None:
    temporary = slot / f"{_TEMPORARY}{CURRENT}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"{BUILDS}/{name}")
    temporary.replace(slot / CURRENT)
    sync_folder(slot)


def _prune(slot: Path, kept: set[str]) -> None:
    for path in (slot / BUILDS).iterdir():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _history(slot: Path) -> list[str]:
    try:
        content = read_json(slot / HISTORY)
    except GenrecalError:
        return []  # a device without its history still runs; it has no way back
    names = content.get("builds") if isinstance(content, dict) else None
    return [name for name in names or () if safe_name(name) and "/" not in name]


@contextmanager
def _temporary(slot: Path) -> Iterator[Path]:
    for left in (slot / BUILDS).glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)  # of an installation that was killed
    folder = Path(tempfile.mkdtemp(dir=slot / BUILDS, prefix=_TEMPORARY))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(slot: Path) -> Iterator[None]:
    """One installation at a time; the lock ends with the process that holds it."""
    with (slot / _LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError("another installation is under way", where=slot) from None
        yield


def sign(build: Path, key: Path) -> None:
    """`genrecal sign`: check a build, sign it, print what a device can pin or trust.

    Raises:
        BuildError: the build is damaged; it is not signed.
        ConfigError: the key is none.
    """
    opened = open_build(build)
    name = sign_manifest(opened.folder, key)
    digest = sha256_bytes(read_regular(opened.folder / MANIFEST, max_bytes=MAX_BYTES))
    console.print(f"signed: {build} with key {name}, manifest {digest}", markup=False, soft_wrap=True)


def install_command(
    build: Path, slot: Path, *, manifest_sha256: str | None, trusted_keys: Sequence[Path]
) -> None:
    """`genrecal install`"""
    _print(slot, install(build, slot, manifest_sha256=manifest_sha256, trusted_keys=trusted_keys))


def rollback_command(slot: Path, *, trusted_keys: Sequence[Path]) -> None:
    """`genrecal rollback`"""
    _print(slot, rollback(slot, trusted_keys=trusted_keys))


def _print(slot: Path, found: Slot) -> None:
    back = f", to roll back to: {found.previous}" if found.previous else ", nothing to roll back to"
    console.print(f"in use: {slot / CURRENT} -> {found.current}{back}", markup=False, soft_wrap=True)
