"""InternVL: an image is cut into tiles of one size, and a thumbnail of the whole goes behind them.

image -> RGB -> resize to the grid of tiles that is nearest in shape -> tiles [+ thumbnail] -> normalise
prompt: <img> image tokens of all tiles </img>
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from edge.preprocess.picture import (
    CLIP_MEAN,
    CLIP_STD,
    WHERE,
    Colours,
    Picture,
    read_colours,
    read_errors,
    read_resample,
    resized,
    stacked,
    tiles_of,
    to_rgb,
)
from genrecal.core.errors import BuildError

START, END = "<img>", "</img>"


@dataclass(frozen=True, slots=True, kw_only=True)
class InternVLPreprocessing:
    """The numbers of an InternVL `preprocessor_config.json`, and how many tokens a tile becomes."""

    height: int
    width: int
    min_tiles: int
    max_tiles: int
    tokens: int
    resample: Image.Resampling
    colours: Colours


def read(config: Mapping[str, Any], model: Mapping[str, Any]) -> InternVLPreprocessing:
    """Read a `preprocessor_config.json` and the model's config.

    `crop_to_patches` is not read: InternVL's processor always cuts.

    Raises:
        BuildError: a step is switched off or a value cannot be used.
    """
    size = config.get("size") or {}
    with read_errors():
        settings = InternVLPreprocessing(
            height=int(size.get("height", 384)),
            width=int(size.get("width", 384)),
            min_tiles=int(config.get("min_patches", 1)),
            max_tiles=int(config.get("max_patches", 12)),
            tokens=int(model["image_seq_length"]),
            resample=read_resample(config, Image.Resampling.BICUBIC),
            colours=read_colours(config, CLIP_MEAN, CLIP_STD),
        )
    smallest = min(settings.height, settings.width, settings.min_tiles, settings.tokens)
    if smallest <= 0 or settings.max_tiles < settings.min_tiles:
        raise BuildError("sizes and numbers of tiles must be positive", where=WHERE)
    return settings


@lru_cache(maxsize=16)
def arrangements(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of every arrangement, the fewest tiles first."""
    sides = range(1, max_tiles + 1)
    allowed = [
        (columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles
    ]
    return tuple(sorted(allowed, key=lambda grid: grid[0] * grid[1]))


def grid_of(height: int, width: int, settings: InternVLPreprocessing) -> tuple[int, int]:
    """(columns, rows) of the tiles of an image: nearest in shape; of two that are equally near the one with
    more tiles, unless the image has less than half of their pixels."""
    ratio, best, nearest = width / height, (1, 1), float("inf")
    for columns, rows in arrangements(settings.min_tiles, settings.max_tiles):
        distance = abs(ratio - columns / rows)
        enough = height * width > 0.5 * settings.height * settings.width * columns * rows
        if distance < nearest or (distance == nearest and enough):
            nearest, best = distance, (columns, rows)
    return best


def prepare(image: Image.Image, settings: InternVLPreprocessing, alone: bool = True) -> Picture:
    """Turn an image into tiles and a thumbnail; one that fits a single tile has no thumbnail."""
    rgb, height, width = to_rgb(image), settings.height, settings.width
    if settings.max_tiles > 1:
        columns, rows = grid_of(rgb.height, rgb.width, settings)
        # The processor cuts with its default filter, whatever its settings name.
        bicubic = Image.Resampling.BICUBIC
        tiles = tiles_of(resized(rgb, height * rows, width * columns, bicubic), height, width)
        if len(tiles) > 1:
            tiles.append(resized(rgb, height, width, bicubic))
    else:
        tiles = [resized(rgb, height, width, settings.resample)]
    return Picture(
        inputs={"pixel_values": stacked(tiles, settings.colours)},
        prompt=(START, len(tiles) * settings.tokens, END),
    )
