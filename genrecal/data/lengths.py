"""About how many tokens every sample has, before it is read: what an order by length sorts by.

    characters of the turns -> a quarter as many tokens
    size of each image      -> tokens, as each VLM's processor counts them

Sizes stand in the images' headers, some hundred bytes each: TABLE/sizes.npy, built once, where an order by
length is wanted. On a network disk that is a round trip for each image; many threads wait side by side.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genrecal.core.eta import with_eta
from genrecal.core.files import write_bytes
from genrecal.core.images import MAX_ASPECT_RATIO, image_size
from genrecal.core.types import ImageSource
from genrecal.data.inputs import image_token_counts
from genrecal.data.references import TarMember

if TYPE_CHECKING:
    from genrecal.data.cache import Table

SIZES = "sizes.npy"
CHARACTERS_PER_TOKEN = 4
THREADS, CHUNK = 32, 1024
# Of a picture in a tar: enough for a header, but for one behind a large thumbnail.
HEAD_BYTES = 1 << 16


def image_sizes(table: Table) -> np.ndarray:
    """Width and height of every image of every sample, in order, int32 [N, 2]; 0 where no header says so."""
    from filelock import FileLock

    path = table.folder / SIZES
    with FileLock(table.folder.parent / f".{table.folder.name}.lock"):
        if not path.is_file():
            stream = io.BytesIO()
            np.save(stream, _read(table))
            write_bytes(path, stream.getvalue())
    return np.load(path, mmap_mode="r")


def token_lengths(tables: Sequence[Table], processors: Sequence[Any]) -> np.ndarray:
    """Of every sample of the tables, summed over the VLMs that read it, int32 [N]."""
    return np.concatenate([_of_table(table, processors) for table in tables])


def _of_table(table: Table, processors: Sequence[Any]) -> np.ndarray:
    text = table.columns["characters"] // CHARACTERS_PER_TOKEN * len(processors)
    sizes, place = np.unique(image_sizes(table), axis=0, return_inverse=True)
    # No processor is asked about what no reader opens.
    readable = (sizes.min(1, initial=1) > 0) & (
        sizes.max(1, initial=0) <= MAX_ASPECT_RATIO * sizes.min(1, initial=1)
    )
    tokens = np.zeros(len(sizes), np.int64)
    for processor in processors:
        tokens[readable] += image_token_counts(processor, sizes[readable])
    owner = np.repeat(np.arange(len(table)), table.columns["images"])
    of_images = np.bincount(owner, weights=tokens[place.reshape(-1)], minlength=len(table))
    return (text + of_images).astype(np.int32)


def _read(table: Table) -> np.ndarray:
    chunks = with_eta(
        _chunks(table),
        what=f"sizes of the images of {table.source.path}",
        total=len(table),
        done=lambda one: one[0],
    )
    with warnings.catch_warnings():  # here, as threads share what is ignored
        warnings.simplefilter("ignore")
        return np.array([size for _, sizes in chunks for size in sizes], np.int32).reshape(-1, 2)


def _chunks(table: Table) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The number of samples done, and the sizes of the last ones' images."""
    with ThreadPoolExecutor(THREADS) as threads:
        for first in range(0, len(table), CHUNK):
            last = min(first + CHUNK, len(table))
            images = [image for row in range(first, last) for image in table[row].images]
            yield last, list(threads.map(_size, images))


def _size(image: ImageSource) -> tuple[int, int]:
    if isinstance(image, TarMember) and image.size > HEAD_BYTES:
        found = image_size(replace(image, size=HEAD_BYTES))
        if found != (0, 0):
            return found
    return image_size(image)
