"""An image as the rows that a vision encoder reads, equal to the family's slow Hugging Face processor.

    image -> RGB -> resize to whole blocks of merge x merge patches -> 0..1 -> normalise -> rows

Shapes: N = grid_h * grid_w patches, E = channels * frames * patch * patch values of one patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genrecal.core.errors import BuildError, DataError
from genrecal.core.images import MAX_ASPECT_RATIO

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Preprocessed images, one after another."""

    pixel_values_NE: NDArray[np.float32]
    grid_I3: NDArray[np.int64]
    """Time, height and width of each image, in patches."""
    image_tokens: tuple[int, ...]
    """How many tokens each image becomes."""


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
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_qwen2_vl(config: Mapping[str, Any]) -> Qwen2VLPreprocessing:
    """Read a `preprocessor_config.json`; what it leaves out has the processor's own default.

    `min_pixels` and `max_pixels` go before `size`, which newer files have in their place.

    Raises:
        BuildError: a step is switched off or a value cannot be used.
    """
    where = "preprocessor_config.json"
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(step, True) is not True:
            raise BuildError(
                f"'{step}' is {config[step]}; only preprocessing with it is supported", where=where
            )
    size = config.get("size") or {}
    try:
        settings = Qwen2VLPreprocessing(
            patch=int(config.get("patch_size", 14)),
            merge=int(config.get("merge_size", 2)),
            frames=int(config.get("temporal_patch_size", 2)),
            min_pixels=int(config.get("min_pixels") or size.get("shortest_edge") or 56 * 56),
            max_pixels=int(config.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280),
            resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
            scale=float(config.get("rescale_factor", 1 / 255)),
            mean=tuple(float(value) for value in config.get("image_mean") or _MEAN),
            std=tuple(float(value) for value in config.get("image_std") or _STD),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise BuildError(f"a value cannot be used ({error})", where=where) from None
    positive = min(settings.patch, settings.merge, settings.frames, settings.min_pixels, *settings.std) > 0
    if not positive or len(settings.mean) != 3 or len(settings.std) != 3:
        raise BuildError("sizes must be positive, mean and std have three values", where=where)
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


def preprocess_qwen2_vl(images: Sequence[Image.Image], settings: Qwen2VLPreprocessing) -> Pixels:
    """Turn images of any size and mode into patches.

    The Hugging Face processor takes an image that is 1 or 3 pixels high for one whose channels come first;
    here such an image is read like every other one.

    Raises:
        DataError: an image is longer than 200:1.
    """
    rows, grids = [], []
    for image in images:
        rows_NE, grid = _patches(image, settings)
        rows.append(rows_NE)
        grids.append(grid)
    width_E = 3 * settings.frames * settings.patch**2
    return Pixels(
        pixel_values_NE=np.concatenate(rows) if rows else np.zeros((0, width_E), np.float32),
        grid_I3=np.array(grids, dtype=np.int64).reshape(-1, 3),
        image_tokens=tuple(t * h * w // settings.merge**2 for t, h, w in grids),
    )


def _patches(
    image: Image.Image, settings: Qwen2VLPreprocessing
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    patch, merge = settings.patch, settings.merge
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    height, width = smart_resize(
        rgb.height,
        rgb.width,
        factor=patch * merge,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
    )
    pixels_HWC = np.asarray(rgb.resize((width, height), resample=settings.resample))
    # Scaled in float64, normalised in float32: the processor's own order, so that the bits are equal.
    scaled_HWC = (pixels_HWC.astype(np.float64) * settings.scale).astype(np.float32)
    mean_C, std_C = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    normal_HWC = np.divide(np.subtract(scaled_HWC, mean_C), std_C)
    grid_h, grid_w = height // patch, width // patch
    blocks = normal_HWC.reshape(grid_h // merge, merge, patch, grid_w // merge, merge, patch, 3)
    # Block row, block column, patch row and column in the block, then what is in a patch.
    rows = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(grid_h * grid_w, 3, 1, patch * patch)
    return np.repeat(rows, settings.frames, axis=2).reshape(grid_h * grid_w, -1), (1, grid_h, grid_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """How one family reads its settings and prepares its images."""

    read: Callable[[Mapping[str, Any]], Any]
    prepare: Callable[[Sequence[Image.Image], Any], Pixels]


# family -> its preprocessing
PREPROCESSORS: dict[str, Preprocessor] = {
    "qwen2_vl": Preprocessor(read=read_qwen2_vl, prepare=preprocess_qwen2_vl),
}
