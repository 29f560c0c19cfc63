"""Idefics3 and SmolVLM: tiles with their row and column in the prompt, and the whole image behind them.

image -> RGB -> longest edge to `size` -> up to whole tiles -> tiles, whole image -> normalise
prompt: <fake_token_around_image><row_1_col_1> image tokens ... \\n ... <global-img> image tokens <fake...>
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from edge.preprocess.picture import (
    STANDARD,
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

FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"
# The processor's own limit, whatever `size` says.
LONGEST_PX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Idefics3Preprocessing:
    """The numbers of an Idefics3 `preprocessor_config.json`, and how many tokens a tile becomes."""

    longest_edge: int
    tile: int
    split: bool
    tokens: int
    resample: Image.Resampling
    colours: Colours


def read(config: Mapping[str, Any], model: Mapping[str, Any]) -> Idefics3Preprocessing:
    """Read a `preprocessor_config.json` and the model's config.

    Raises:
        BuildError: a step is switched off or a value cannot be used.
    """
    with read_errors():
        vision = model["vision_config"]
        side = int(vision["image_size"]) // int(vision["patch_size"])
        settings = Idefics3Preprocessing(
            longest_edge=int((config.get("size") or {}).get("longest_edge", 4 * 364)),
            tile=int((config.get("max_image_size") or {}).get("longest_edge", 364)),
            split=bool(config.get("do_image_splitting", True)),
            tokens=side**2 // int(model["scale_factor"]) ** 2,
            resample=read_resample(config, Image.Resampling.LANCZOS),
            colours=read_colours(config, STANDARD, STANDARD),
        )
    if min(settings.longest_edge, settings.tile, settings.tokens) <= 0:
        raise BuildError("sizes must be positive", where=WHERE)
    return settings


def scaled_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width with the longest edge brought to `longest`; the other one becomes even."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LONGEST_PX:
        width, height = LONGEST_PX, int(LONGEST_PX / ratio)
    elif height > width and height > LONGEST_PX:
        height, width = LONGEST_PX, int(LONGEST_PX * ratio)
    return max(height, 1), max(width, 1)


def whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """Height and width as multiples of a tile's edge, about in the same shape."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return height, width


def prepare(image: Image.Image, settings: Idefics3Preprocessing, alone: bool = True) -> Picture:
    """Turn an image into tiles; one that fits a single tile is not cut."""
    tile, rows, columns = settings.tile, 0, 0
    rgb = _resized(to_rgb(image), *scaled_size(image.height, image.width, settings.longest_edge), settings)
    tiles = []
    if settings.split:
        rgb = _resized(rgb, *whole_tiles(rgb.height, rgb.width, tile), settings)
        if rgb.height > tile or rgb.width > tile:
            rows, columns = rgb.height // tile, rgb.width // tile
            tiles = tiles_of(np.asarray(rgb), tile, tile)
    tiles.append(resized(rgb, tile, tile, settings.resample))
    return Picture(
        inputs={
            "pixel_values": stacked(tiles, settings.colours),
            # Tiles are never padded here; the encoder takes a mask all the same.
            "pixel_attention_mask": np.ones((len(tiles), tile, tile), np.int64),
        },
        prompt=prompt_of(rows, columns, settings.tokens),
    )


def prompt_of(rows: int, columns: int, tokens: int) -> tuple[str | int, ...]:
    """What stands for an image of rows x columns tiles, 0 x 0 for one that is not cut."""
    parts: list[str | int] = []
    for row in range(rows):
        for column in range(columns):
            line = "\n" if row and not column else ""
            parts += [f"{line}{FAKE}<row_{row + 1}_col_{column + 1}>", tokens]
    return (*parts, ("\n\n" if rows else "") + FAKE + GLOBAL, tokens, FAKE)


def _resized(image: Image.Image, height: int, width: int, settings: Idefics3Preprocessing) -> Image.Image:
    return image.resize((width, height), resample=settings.resample)
