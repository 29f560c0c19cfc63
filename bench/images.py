"""The images of a test set, by name: what the check for overlap with training data compares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from bench import mmbench, mmmu, mmvet
from bench.circular import is_main
from genrecal.core.errors import DataError
from genrecal.core.files import read_json
from genrecal.core.images import open_image


def set_images(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Every image of a test set once, decoded, with a name that finds it again.

    Args:
        path: MMBench's TSV, MMMU's parquet file or folder, MM-Vet's JSON or folder, or LLaVA conversations.

    Raises:
        DataError: it is none of them, or an image cannot be used.
    """
    if not path.exists():
        raise DataError("no such test set", where=path)
    if path.suffix == ".tsv":
        yield from _of_mmbench(path)
    elif path.suffix == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None)):
        yield from _of_mmmu(path)
    elif path.is_dir() or (path.suffix == ".json" and isinstance(read_json(path), dict)):
        for name, image in {str(question.image): question.image for question in mmvet.load(path)}.items():
            yield name, open_image(image)
    elif path.suffix == ".json":
        yield from _of_conversations(path)
    else:
        raise DataError("is no test set", where=path, fix="Name a TSV, a parquet file, a JSON or a folder")


def _of_mmbench(path: Path) -> Iterator[tuple[str, Image.Image]]:
    for row in mmbench.load(path):
        if is_main(row.index):
            for number, data in enumerate(row.images, start=1):
                yield f"{path}, row {row.index}, image {number}", open_image(data)


def _of_mmmu(path: Path) -> Iterator[tuple[str, Image.Image]]:
    for question in mmmu.load(path):
        for number, data in question.images.items():
            yield f"{path}, {question.id}, image_{number}", open_image(data)


def _of_conversations(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """LLaVA rows name one image or a list of them, relative to the JSON's folder; rows of text name none."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("is no list of conversations", where=path)
    seen: set[str] = set()
    for row in rows:
        named = row.get("image", [])
        for name in [named] if isinstance(named, str) else named:
            if name not in seen:
                seen.add(name)
                yield str(path.parent / name), open_image(path.parent / name)
