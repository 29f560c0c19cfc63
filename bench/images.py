"""The questions of a test set with their images, by name: what is looked for in training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench.prompt_parts import option_lines
from bench.sets import mmbench
from bench.task import Row
from bench.tasks import TASKS, task_named
from genrecal.core.errors import DataError
from genrecal.core.files import read_json
from genrecal.core.images import open_image


@dataclass(frozen=True, slots=True, kw_only=True)
class SetQuestion:
    """One question of a test set; images are opened by whoever needs them."""

    name: str
    texts: tuple[str, ...]  # the question alone, and with its options where it has some
    images: Mapping[str, Path | bytes]  # a name that finds the image again -> path or encoded bytes


def set_questions(
    path: Path, *, task: str | None = None, conversations: Callable[[Path], Iterable[Any]] | None = None
) -> Iterator[Any]:
    """Every question of a test set.

    Args:
        path: the benchmark's files; without `task`: MMBench's TSV, MMMU's parquet file or folder, MM-Vet's
            JSON or folder, or conversations.
        task: the benchmark's name in bench/tasks.py.
        conversations: who reads a JSON list or JSON lines (genrecal/data/asked.py), into what is like a
            SetQuestion.

    Raises:
        DataError: it is none of them, or cannot be used.
        BenchError: no benchmark is of that name.
    """
    if not path.exists():
        raise DataError("no such test set", where=path)
    if task is not None:
        yield from questions_of(task_named(task).load(path), where=str(path))
    elif path.suffix == ".tsv":
        yield from questions_of(mmbench.load(path), where=str(path))
    elif path.suffix == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None)):
        yield from questions_of(TASKS["mmmu"].load(path), where=str(path))
    elif path.is_dir() or (path.suffix == ".json" and isinstance(read_json(path), dict)):
        yield from questions_of(TASKS["mmvet"].load(path), where=str(path))
    elif conversations is not None and path.suffix in (".json", ".jsonl", ".ndjson"):
        yield from conversations(path)
    else:
        raise DataError("is no test set", where=path, fix="Name a TSV, a parquet file, a JSON or a folder")


def named_set(argument: str) -> tuple[str | None, Path]:
    """NAME=PATH as a benchmark and its files; a path alone leaves the benchmark open."""
    name, mark, path = argument.partition("=")
    return (name, Path(path)) if mark and name in TASKS else (None, Path(argument))


def questions_of(rows: Iterable[Row], *, where: str) -> Iterator[SetQuestion]:
    """Each question of a benchmark once, whatever rotations it has."""
    seen: set[str] = set()
    for row in rows:
        if row.question_id in seen:
            continue
        seen.add(row.question_id)
        name = f"{where}, {row.id}"
        images = {
            str(source) if isinstance(source, Path) else f"{name}, image {number}": source
            for number, source in row.images.items()
        }
        whole = (f"{row.question}\n{option_lines(row.options)}",) if row.options else ()
        yield SetQuestion(name=name, texts=(row.question, *whole), images=images)


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
