"""Images that are no files of their own: bytes at hand, in a tar, in a Hugging Face data set, in our cache.

    open_image(reference)  ->  reference.read()  ->  the encoded bytes

A reference holds a path and a few numbers, so a worker process gets it cheaply; what it reads from is opened
once in each process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Images in one record batch of the cache: a reader maps a batch, it does not load it.
STORED_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineImage:
    """Encoded bytes, as a row of a file brought them; the cache turns them into a CachedImage."""

    data: bytes
    name: str

    def read(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A file within an uncompressed tar."""

    tar: Path
    name: str
    offset: int  # bytes from the tar's start to the file's first byte
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as stream:
            return os.pread(stream.fileno(), self.size, self.offset)

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetImage:
    """An image in a column of a data set that `datasets` saved to disk."""

    folder: Path
    column: str
    row: int
    place: int  # among the images of the row

    def read(self) -> bytes:
        value = opened_dataset(self.folder)[self.row][self.column][0].as_py()
        value = value[self.place] if isinstance(value, list) else value
        return value["bytes"] if isinstance(value, dict) else value

    def __str__(self) -> str:
        return f"{self.folder} row {self.row} {self.column} {self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """An image in the Arrow file of a cached source."""

    file: Path
    index: int
    name: str  # where it came from

    def read(self) -> bytes:
        batch = _stored_images(self.file).get_batch(self.index // STORED_BATCH)
        return batch.column(0)[self.index % STORED_BATCH].as_py()

    def __str__(self) -> str:
        return self.name


def open_arrow(file: Path) -> Any:
    """A memory-mapped reader of an Arrow IPC file."""
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))


# As many sources as a mixture may well have: images are read across all of them.
_stored_images = lru_cache(maxsize=256)(open_arrow)


@lru_cache(maxsize=256)
def opened_dataset(folder: Path) -> Any:
    """A data set on disk whose rows come as Arrow tables: images stay as they are encoded."""
    from datasets import load_from_disk

    return load_from_disk(str(folder)).with_format("arrow")
