"""LLaVA-OneVision: the whole image, and where it stands alone, the tiles of the resolution that fits it best.

    image -> RGB -> resized into the resolution, black around it -> [whole image, tiles] -> normalise
    several images -> each on a square of the mean colour, one tile

The encoder takes the image's size, cuts the features of the black border off and ends each row with one of
its own; how many tokens that leaves is counted here in the same way.
"""

from __future__ import annotations

import math
import re
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
    stacked,
    tiles_of,
    to_rgb,
)
from genrecal.core.errors import BuildError

# Features that are this much more than allowed are thinned out; the model's own constant.
SURPLUS = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaOnevisionPreprocessing:
    """The numbers of a LLaVA-OneVision `preprocessor_config.json` and of the model's features."""

    height: int
    width: int
    resolutions: tuple[tuple[int, int], ...]
    """Height and width of every resolution that an image may be brought to."""
    side: int
    """Features along one side of a tile."""
    max_tiles: int
    """Tiles' worth of features that an image keeps."""
    dropped: int
    """Features that the model leaves out of each image: 1 with a class token, else 0."""
    background: tuple[int, int, int]
    resample: Image.Resampling
    colours: Colours


def read(config: Mapping[str, Any], model: Mapping[str, Any]) -> LlavaOnevisionPreprocessing:
    """Read a `preprocessor_config.json` and the model's config.

    Raises:
        BuildError: a step is switched off or a value cannot be used.
    """
    size = config.get("size") or {}
    with read_errors():
        vision = model["vision_config"]
        edge = size.get("shortest_edge", 384)
        found = re.search(r"(\d+)$", model.get("vision_aspect_ratio", "anyres_max_9"))
        if found is None:
            raise ValueError(f"vision_aspect_ratio {model['vision_aspect_ratio']}")
        resolutions = config.get("image_grid_pinpoints") or model["image_grid_pinpoints"]
        settings = LlavaOnevisionPreprocessing(
            height=int(size.get("height", edge)),
            width=int(size.get("width", edge)),
            resolutions=tuple((int(height), int(width)) for height, width in resolutions),
            side=int(vision["image_size"]) // int(vision["patch_size"]),
            max_tiles=int(found[1]),
            dropped=int(model.get("vision_feature_select_strategy", "full") == "default"),
            background=tuple(  # type: ignore[arg-type]
                int(float(value) * 255) for value in config.get("image_mean") or CLIP_MEAN
            ),
            resample=read_resample(config, Image.Resampling.BICUBIC),
            colours=read_colours(config, CLIP_MEAN, CLIP_STD),
        )
    good = min(settings.height, settings.width, settings.side, settings.max_tiles) > 0 and all(
        height > 0 and width > 0 and height % settings.height == 0 and width % settings.width == 0
        for height, width in settings.resolutions
    )
    if not good or not settings.resolutions:
        raise BuildError("sizes must be positive and resolutions whole numbers of tiles", where=WHERE)
    return settings


def best_resolution(height: int, width: int, resolutions: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The resolution that keeps most of an image's pixels; of equal ones that with the least border."""
    best, kept, wasted = resolutions[0], 0, float("inf")
    for target_h, target_w in resolutions:
        scale = min(target_w / width, target_h / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        border = target_h * target_w - pixels
        if pixels > kept or (pixels == kept and border < wasted):
            best, kept, wasted = (target_h, target_w), pixels, border
    return best


def feature_tokens(height: int, width: int, settings: LlavaOnevisionPreprocessing) -> int:
    """How many features an image of this size keeps when it stands alone, its ends of rows included."""
    target_h, target_w = best_resolution(height, width, settings.resolutions)
    rows = settings.side * (target_h // settings.height)
    columns = settings.side * (target_w // settings.width)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    surplus = math.sqrt(rows * columns / (settings.max_tiles * settings.side**2))
    if surplus > SURPLUS:
        rows, columns = int(rows // surplus), int(columns // surplus)
    return rows * columns + rows + settings.side**2 - settings.dropped


def prepare(image: Image.Image, settings: LlavaOnevisionPreprocessing, alone: bool = True) -> Picture:
    """Turn an image into tiles; only one that stands alone in its conversation is cut.

    The Hugging Face processor pads an image that is fitted to a height of 1 or 3 pixels as if its channels
    came first; here such an image is padded like every other one.
    """
    rgb, height, width = to_rgb(image), settings.height, settings.width
    if alone:
        target = best_resolution(rgb.height, rgb.width, settings.resolutions)
        tiles = [
            resized(rgb, height, width, settings.resample),
            *tiles_of(_fitted(rgb, target, settings.resample), height, width),
        ]
        tokens = feature_tokens(rgb.height, rgb.width, settings)
    else:
        tiles = [resized(_on_square(rgb, settings.background), height, width, settings.resample)]
        tokens = settings.side**2 + 1 - settings.dropped
    return Picture(
        inputs={
            "pixel_values": stacked(tiles, settings.colours),
            "image_sizes": np.array([[rgb.height, rgb.width]], dtype=np.int64),
        },
        prompt=(tokens,),
    )


def _fitted(image: Image.Image, target: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """The image in its own shape, as large as `target` allows, in the middle of a black picture."""
    target_h, target_w = target
    scale_w, scale_h = target_w / image.width, target_h / image.height
    if scale_w < scale_h:
        height, width = min(math.ceil(image.height * scale_w), target_h), target_w
    else:
        height, width = target_h, min(math.ceil(image.width * scale_h), target_w)
    top, left = (target_h - height) // 2, (target_w - width) // 2
    picture = np.zeros((target_h, target_w, 3), np.uint8)
    picture[top : top + height, left : left + width] = resized(image, height, width, resample)
    return picture


def _on_square(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
