"""The questions of a test set with their images, by name: what is looked for in training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench import mmbench, mmmu, mmvet
from bench.circular import is_main
from genrecal.core.errors import DataError
from genrecal.core.files import read_json
from genrecal.core.images import open_image


@dataclass(frozen=True, slots=True, kw_only=True)
class SetQuestion:
    """One question of a test set; images are opened by whoever needs them."""

    name: str
    texts: tuple[str, ...]  # the question alone, and with its options where it has some
    images: Mapping[str, Path | bytes]  # a name that finds the image again -> path or encoded bytes


def set_questions(path: Path) -> Iterator[SetQuestion]:
    """Every question of a test set.

    Args:
        path: MMBench's TSV, MMMU's parquet file or folder, MM-Vet's JSON or folder, or LLaVA conversations.

    Raises:
        DataError: it is none of them, or cannot be used.
    """
    if not path.exists():
        raise DataError("no such test set", where=path)
    if path.suffix == ".tsv":
        yield from _of_mmbench(path)
    elif path.suffix == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None)):
        yield from _of_mmmu(path)
    elif path.is_dir() or (path.suffix == ".json" and isinstance(read_json(path), dict)):
        for question in mmvet.load(path):
            images = {str(question.image): question.image}
            yield SetQuestion(name=f"{path}, {question.id}", texts=(question.question,), images=images)
    elif path.suffix == ".json":
        yield from _of_conversations(path)
    else:
        raise DataError("is no test set", where=path, fix="Name a TSV, a parquet file, a JSON or a folder")


def set_images(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Every image of a test set once, decoded, with a name that finds it again.

    Raises:
        DataError: `path` is no test set, or an image cannot be used.
    """
    seen: set[str] = set()
    for question in set_questions(path):
        for name, source in question.images.items():
            if name not in seen:
                seen.add(name)
                yield name, open_image(source, name=name)


def _of_mmbench(path: Path) -> Iterator[SetQuestion]:
    for row in mmbench.load(path):
        if is_main(row.index):
            where = f"{path}, row {row.index}"
            images = {f"{where}, image {number}": data for number, data in enumerate(row.images, start=1)}
            yield SetQuestion(name=where, texts=_with_options(row.question, row.options), images=images)


def _of_mmmu(path: Path) -> Iterator[SetQuestion]:
    for question in mmmu.load(path):
        where = f"{path}, {question.id}"
        images = {f"{where}, image_{number}": data for number, data in question.images.items()}
        yield SetQuestion(name=where, texts=_with_options(question.question, question.options), images=images)


def _with_options(question: str, options: Mapping[str, str]) -> tuple[str, ...]:
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    return (question, "\n".join([question, *lines])) if lines else (question,)


def _of_conversations(path: Path) -> Iterator[SetQuestion]:
    """LLaVA rows name one image or a list of them, relative to the JSON's folder; rows of text name none."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("is no list of conversations", where=path)
    for number, row in enumerate(rows):
        named = row.get("image") or []
        paths = [path.parent / name for name in ([named] if isinstance(named, str) else named)]
        yield SetQuestion(
            name=f"{path}, row {number}",
            texts=_asked(row.get("conversations") or []),
            images={str(image): image for image in paths},
        )


def _asked(turns: list[Any]) -> tuple[str, ...]:
    asked = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") != "gpt"]
    return tuple(text for text in asked if isinstance(text, str))
