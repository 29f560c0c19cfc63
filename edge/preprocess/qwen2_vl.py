"""Qwen2-VL and Qwen2.5-VL: an image keeps about its size and becomes patches.

    image -> RGB -> resize to whole blocks of merge x merge patches -> 0..1 -> normalise -> rows

Shapes: N = grid_h * grid_w patches, E = channels * frames * patch * patch values of one patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    to_rgb,
)
from genrecal.core.errors import BuildError, DataError
from genrecal.core.images import MAX_ASPECT_RATIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2VLPreprocessing:
    """The numbers of a Qwen2-VL `preprocessor_config.json`."""

    patch: int
    merge: int
    frames: int
    """A still image is shown this many times, as a clip."""
    min_pixels: int
    max_pixels: int
    resample: Image.Resampling
    colours: Colours


def read(config: Mapping[str, Any], model: Mapping[str, Any]) -> Qwen2VLPreprocessing:
    """Read a `preprocessor_config.json`; what it leaves out has the processor's own default.

    `min_pixels` and `max_pixels` go before `size`, which newer files have in their place.

    Raises:
        BuildError: a step is switched off or a value cannot be used.
    """
    size = config.get("size") or {}
    with read_errors():
        settings = Qwen2VLPreprocessing(
            patch=int(config.get("patch_size", 14)),
            merge=int(config.get("merge_size", 2)),
            frames=int(config.get("temporal_patch_size", 2)),
            min_pixels=int(config.get("min_pixels") or size.get("shortest_edge") or 56 * 56),
            max_pixels=int(config.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280),
            resample=read_resample(config, Image.Resampling.BICUBIC),
            colours=read_colours(config, CLIP_MEAN, CLIP_STD),
        )
    if min(settings.patch, settings.merge, settings.frames, settings.min_pixels) <= 0:
        raise BuildError("sizes must be positive, mean and std have three values", where=WHERE)
    return settings


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width in pixels that an image is resized to.

    Both are multiples of `factor`, their product lies between `min_pixels` and `max_pixels`, and the shape
    is kept as far as that allows.

    Raises:
        DataError: the image is longer than 200:1.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DataError(f"an image of {width}x{height} is longer than {MAX_ASPECT_RATIO}:1")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def prepare(image: Image.Image, settings: Qwen2VLPreprocessing, alone: bool = True) -> Picture:
    """Turn an image of any size and mode into patches.

    The Hugging Face processor takes an image that is 1 or 3 pixels high for one whose channels come first;
    here such an image is read like every other one.

    Raises:
        DataError: the image is longer than 200:1.
    """
    patch, merge = settings.patch, settings.merge
    height, width = smart_resize(
        image.height,
        image.width,
        factor=patch * merge,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
    )
    normal_HWC = settings.colours(resized(to_rgb(image), height, width, settings.resample))
    grid_h, grid_w = height // patch, width // patch
    blocks = normal_HWC.reshape(grid_h // merge, merge, patch, grid_w // merge, merge, patch, 3)
    # Block row, block column, patch row and column in the block, then what is in a patch.
    rows = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(grid_h * grid_w, 3, 1, patch * patch)
    rows_NE = np.repeat(rows, settings.frames, axis=2).reshape(grid_h * grid_w, -1)
    grid = (1, grid_h, grid_w)
    return Picture(
        inputs={"pixel_values": rows_NE, "image_grid_thw": np.array([grid], dtype=np.int64)},
        prompt=(grid_h * grid_w // merge**2,),
        grid=grid,
    )
