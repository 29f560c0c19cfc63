"""Batches of questions that are about as long as each other: padding is computed and thrown away.

    rows -> longest first, ties by id -> cut into batches

The order is a function of the rows alone, so a resumed run cuts, and samples, as the first one did. Longest
first: memory that is too small shows at once, and the time that is left is not told too short.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bench.task import ImageSource, Row
from genrecal.core.errors import DataError

LETTERS_A_TOKEN = 4
# Families differ; what counts is which of two prompts is longer.
PIXELS_A_TOKEN = 28 * 28


def batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """The rows in batches of `size`; one by one they stay in the file's order."""
    if size == 1:
        return [[row] for row in rows]
    known: dict[ImageSource, int] = {}
    lengths = {row.id: prompt_length(row, known) for row in rows}
    ordered = sorted(rows, key=lambda row: (-lengths[row.id], row.id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def prompt_length(row: Row, known: dict[ImageSource, int] | None = None) -> int:
    """Tokens of a prompt, roughly; of images the heads alone are read.

    Args:
        known: lengths of images that were read before; rotations of a question share theirs.
    """
    letters = len(row.question) + sum(len(text) for text in row.options.values())
    return letters // LETTERS_A_TOKEN + sum(
        _image_length(source, known if known is not None else {}) for source in row.images.values()
    )


def _image_length(source: ImageSource, known: dict[ImageSource, int]) -> int:
    if source not in known:
        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"an image cannot be read ({error})", where="batches") from None
        known[source] = -(-width * height // PIXELS_A_TOKEN)
    return known[source]
