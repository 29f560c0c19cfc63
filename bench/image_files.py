"""Images of large sets lie in folders: looked at before a run, decoded when they are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from genrecal.core.errors import DataError
from genrecal.core.images import image_size


@cache
def require_image_file(path: Path) -> Path:
    """`path`, if it is an image as far as its first bytes tell; forty thousand take seconds, not minutes.

    Raises:
        DataError: it is none, or not there.
    """
    if not path.is_file():
        raise DataError("no such image", where=path)
    if image_size(path) == (0, 0):
        raise DataError("is not an image of a known format", where=path)
    return path


def find_image(name: str, folders: Sequence[Path]) -> Path:
    """The first of `folders` that has the image.

    Raises:
        DataError: none has it.
    """
    for folder in folders:
        if (folder / name).is_file():
            return require_image_file(folder / name)
    places = ", ".join(str(folder) for folder in folders)
    raise DataError(f"no such image in {places}", where=name)
