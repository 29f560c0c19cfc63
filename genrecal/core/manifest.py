"""The manifest of a folder: what it is, where it came from, and a SHA-256 of every file; written last."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from genrecal.core.errors import GenrecalError
from genrecal.core.files import read_json, sha256_file, write_json
from genrecal.core.strict_json import parse_json

NAME = "manifest.json"
FORMAT = 1
# A manifest of a thousand files has about 150 kB.
MAX_BYTES = 8 * 2**20
MAX_DEPTH = 32
PACKAGES = (
    "genrecal",
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
    "pillow",
)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that shape a result, as far as they are installed here."""
    from importlib import metadata  # with email and more behind it; who opens a build needs none of them

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def write_manifest(
    folder: Path, *, kind: str, files: dict[str, dict[str, Any]] | None = None, **facts: Any
) -> dict[str, Any]:
    """Hash every file below `folder` and write its manifest, after everything else is there.

    Args:
        folder: a finished folder.
        kind: "run", "student", "build" …
        files: `file_entry` of every file by its name, where others hashed them; None: hash them here.
        facts: what else the manifest says (provenance, quantization, settings), JSON values.
    """
    if files is None:
        files = {
            path.relative_to(folder).as_posix(): file_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).as_posix() != NAME
        }
    manifest = {"kind": kind, "format": FORMAT, "versions": installed_versions(), "files": files, **facts}
    write_json(folder / NAME, manifest)
    return manifest


def read_manifest(folder: Path, *, kind: str) -> dict[str, Any]:
    """The manifest of `folder`.

    Raises:
        GenrecalError: there is none, or it is one of another kind or of a newer format.
    """
    path = folder / NAME
    if not path.is_file():
        raise GenrecalError(
            f"is no {kind} folder: it has no {NAME}",
            where=folder,
            fix=f"Name the folder of a finished {kind}",
        )
    return _checked(read_json(path), folder, kind)


def parse_manifest(data: bytes, folder: Path, *, kind: str) -> dict[str, Any]:
    """A stranger's manifest, from the bytes that were read of it: bounded, and with one meaning only.

    Raises:
        GenrecalError: as `read_manifest` and `parse_json`.
    """
    manifest = parse_json(data, where=folder / NAME, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    return _checked(manifest, folder, kind)


def _checked(manifest: Any, folder: Path, kind: str) -> dict[str, Any]:
    damaged = GenrecalError(f"its {NAME} is damaged", where=folder)
    if not isinstance(manifest, dict):
        raise damaged
    if manifest.get("kind") != kind:
        raise GenrecalError(f"is a folder of kind {_shown(manifest.get('kind'))}, not '{kind}'", where=folder)
    if manifest.get("format") != FORMAT or isinstance(manifest["format"], (bool, float)):
        raise GenrecalError(
            f"has manifest format {_shown(manifest.get('format'))}, this genrecal reads {FORMAT}",
            where=folder,
        )
    if not _is_file_list(manifest.get("files")):
        raise damaged
    return manifest


def verify_manifest(folder: Path, *, kind: str) -> dict[str, Any]:
    """Read the manifest and check that every file that it names is there, unaltered.

    Raises:
        GenrecalError: a file is missing or its size or SHA-256 differs.
    """
    manifest = read_manifest(folder, kind=kind)
    for name in manifest["files"]:
        verify_file(folder, name, manifest)
    return manifest


def verify_file(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Check that one file of a manifest is there, unaltered.

    Raises:
        GenrecalError: it is missing, or its size or SHA-256 differs.
    """
    entry, path = manifest["files"][name], folder / name
    if not path.is_file():
        raise GenrecalError(f"file '{name}' is missing", where=folder, fix="Copy the whole folder again")
    if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
        raise GenrecalError(
            f"file '{name}' differs from its SHA-256 in {NAME}",
            where=folder,
            fix="Copy the whole folder again",
        )


def _shown(value: Any) -> str:
    """A stranger's value in an error: on one line and not long."""
    return ascii(value)[:80]


def _is_file_list(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"sha256", "bytes"} <= entry.keys() for entry in files.values()
    )
