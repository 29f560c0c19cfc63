"""A checkpoint's own model code: not run, unless it is allowed and pinned; what was allowed is recorded.

The pin is the SHA-256 of the folder's *.py files. Nothing is fetched by name, so checkpoints are folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from genrecal.core.config import Config
from genrecal.core.errors import ConfigError, ModelError
from genrecal.core.files import read_json, sha256_bytes, sha256_file

DIGEST = re.compile(r"[0-9a-f]{64}")
# Where transformers looks for the code of a class: config.json, tokenizer_config.json, ...
NAMING_FILES = "*config*.json"


class RemoteCode(Config):
    """Whether the code that a checkpoint brings may run."""

    allow: bool = False
    """Run it. Read it first: it runs with your rights."""
    revision: str | None = None
    """What exactly may run: the SHA-256 of the folder's *.py files."""

    @model_validator(mode="after")
    def _pinned(self) -> RemoteCode:
        if self.allow and self.revision is None:
            raise ValueError("allow needs a revision: the SHA-256 of the folder's *.py files")
        if self.revision is not None and not self.allow:
            raise ValueError("a revision is given, but allow is off")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCode:
    """What may be loaded, and what the manifest says of it."""

    options: dict[str, Any]
    """For every `from_pretrained` of this checkpoint."""
    record: dict[str, Any]
    """For the manifest: whether code was allowed, from where, and its hashes."""


def check_remote_code(folder: Path, settings: RemoteCode) -> CheckedCode:
    """What `from_pretrained` may do with the checkpoint in `folder`.

    Raises:
        ConfigError: the revision is no SHA-256.
        ModelError: the folder's code is not the pinned one, there is none, or it names code elsewhere.
    """
    if not settings.allow:
        return CheckedCode(options={"trust_remote_code": False}, record={"remote_code": False})
    revision = str(settings.revision)
    files = _check_folder(folder, revision)
    return CheckedCode(
        options={"trust_remote_code": True},
        record={
            "remote_code": True,
            "folder": folder.resolve().name,
            "revision": revision,
            "files": files,
        },
    )


def code_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every *.py file below `folder`, by its path there."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*.py"))
        if path.is_file()
    }


def code_digest(files: dict[str, str]) -> str:
    """One SHA-256 for all of `code_files`: of the lines that `sha256sum` prints, sorted by path."""
    lines = (f"{files[path]}  {path}\n" for path in sorted(files))
    return sha256_bytes("".join(lines).encode())


def _check_folder(folder: Path, revision: str) -> dict[str, str]:
    if not DIGEST.fullmatch(revision):
        raise ConfigError(
            f"'{revision}' is no SHA-256 of 64 hexadecimal digits", where="remote_code.revision"
        )
    files = code_files(folder)
    if not files:
        raise ModelError("brings no code", where=folder, fix="Leave remote_code out")
    found = code_digest(files)
    if found != revision:
        raise ModelError(
            f"its code has the SHA-256 {found}, allowed is {revision}",
            where=folder,
            fix=f"Read {', '.join(files)}; if you trust them, set the revision to the former",
        )
    for path in sorted(folder.glob(NAMING_FILES)):
        for entry in _named_code(read_json(path), within=False):
            # "owner/name--module.Class": code of another repository, which no hash here covers
            if "--" in entry:
                raise ModelError(f"takes code from elsewhere: '{entry}'", where=path)
    return files


def _named_code(value: Any, *, within: bool) -> Iterator[str]:
    """Every text below an `auto_map`, at any depth."""
    if isinstance(value, str) and within:
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _named_code(part, within=within or key == "auto_map")
    elif isinstance(value, list):
        for part in value:
            yield from _named_code(part, within=within)
