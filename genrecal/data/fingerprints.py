"""Opens every image of many rows, in this process or in several, and keeps the order of the rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import ImageSource
from genrecal.data.overlap import Fingerprint, fingerprint
from genrecal.data.source import Reading

CHUNK = 32  # rows that a process opens at a time
AHEAD = 4  # chunks for each process that wait for it

# The fingerprints of a row's images, or why one of them cannot be opened.
Prints = tuple[Fingerprint, ...] | DataError


def with_fingerprints(readings: Iterable[Reading], *, workers: int) -> Iterator[tuple[Reading, Prints]]:
    """Every reading with the fingerprints of its images; a bad row's are none.

    Args:
        readings: rows in order.
        workers: processes; with 1 this process does it.
    """
    if workers == 1:
        for reading in readings:
            yield reading, _prints(_images(reading))
        return
    rest = iter(readings)
    # Spawned: a fork of a process that reads Arrow tables has their threads' locks but not the threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[tuple[list[Reading], Future[list[Prints]]]] = deque()
        while True:
            while len(waiting) < workers * AHEAD and (chunk := list(islice(rest, CHUNK))):
                waiting.append((chunk, pool.submit(_chunk, [_images(reading) for reading in chunk])))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            yield from zip(chunk, future.result(), strict=True)


def _images(reading: Reading) -> tuple[ImageSource, ...]:
    """The images of the row's last sample, which has those of all others."""
    return reading.samples[-1].images if reading.samples else ()


def _chunk(rows: Sequence[tuple[ImageSource, ...]]) -> list[Prints]:
    return [_prints(images) for images in rows]


def _prints(images: tuple[ImageSource, ...]) -> Prints:
    found = []
    for image in images:
        one = _of_file(image) if isinstance(image, Path) else _of(image)
        if isinstance(one, DataError):
            return one
        found.append(one)
    return tuple(found)


@lru_cache(maxsize=4096)  # rows about one image follow each other
def _of_file(image: Path) -> Fingerprint | DataError:
    return _of(image)


def _of(image: ImageSource) -> Fingerprint | DataError:
    try:
        return fingerprint(open_image(image))
    except DataError as error:
        return error.with_traceback(None)  # whose frames would keep the image
