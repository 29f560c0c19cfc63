"""What cannot be written is one clear error: on the rank that writes alone, or on all ranks together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from genrecal.core.errors import TrainError

FAILURES = (OSError, RuntimeError, SafetensorError)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise when they cannot write into a TrainError."""
    try:
        yield
    except FAILURES as error:
        raise _unwritten(folder, _words(error)) from error


@contextmanager
def writing_together(folder: Path) -> Iterator[None]:
    """The same for what several ranks write at a time: where one fails, all raise what it says.

    All ranks enter it, and no collective stands inside: a rank that fails would leave the others waiting.
    """
    failure = None
    try:
        yield
    except FAILURES as error:
        failure = error
    words = gather_objects(None if failure is None else _words(failure))
    failed = [rank for rank, said in enumerate(words) if said is not None]
    if failed:
        raise _unwritten(folder, words[failed[0]]) from failure


def gather_objects(value: Any) -> list[Any]:
    """Each rank's value, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_leader(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _unwritten(folder: Path, words: str) -> TrainError:
    return TrainError(
        f"cannot be written ({words})",
        where=folder,
        fix="Is the disk full? The same command resumes from what was saved before",
    )
