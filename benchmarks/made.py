"""What lies in OUTPUT is used again only where it was made as the plan says now.

    FOLDER/made-with.json     the part of the plan that decides what is in FOLDER

It is written before anything else of the folder, so whatever a stop leaves there has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genrecal.core.errors import ConfigError
from genrecal.core.files import read_json, write_json

NAME = "made-with.json"


def check_made(folder: Path, part: dict[str, Any]) -> bool:
    """Whether `folder` is there, begun or finished.

    Args:
        folder: what is made once and then used by every cell that needs it.
        part: what of the plan decides its content, as JSON values.

    Raises:
        ConfigError: it was made with another plan, or nobody knows with which.
    """
    path = folder / NAME
    if not path.is_file():
        # Another process, or one that was stopped, may have come no further than the file's temporary name.
        if not folder.is_dir() or all(one.name.startswith(".") for one in folder.iterdir()):
            return False
        raise ConfigError(
            f"has no {NAME}, so nobody knows with which plan it was made",
            where=folder,
            fix="Delete it, or give another --output folder",
        )
    if read_json(path) != part:
        raise ConfigError(
            "was made with another plan", where=folder, fix="Delete it, or give another --output folder"
        )
    return True


def begin(folder: Path, part: dict[str, Any]) -> None:
    """Let `folder` hold what is made with `part`: write that down where it is new; raises as `check_made`."""
    if not check_made(folder, part):
        write_made(folder, part)


def write_made(folder: Path, part: dict[str, Any]) -> None:
    write_json(folder / NAME, part)
