"""What every family's preprocessing gives, and the arithmetic that all of them share.

Shapes: H, W in pixels, C = 3 channels, T tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genrecal.core.errors import BuildError

WHERE = "preprocessor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
STANDARD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image as its vision encoder reads it, and what stands for it in the prompt."""

    inputs: dict[str, NDArray[Any]]
    """Tensors by the names of the vision graph's inputs; a graph takes those that it declares."""
    prompt: tuple[str | int, ...]
    """In the place of the image's token: texts with special tokens, and numbers of image tokens."""
    grid: tuple[int, int, int] | None = None
    """Time, height and width in patches, where positions are three-dimensional."""

    @property
    def tokens(self) -> int:
        """How many image tokens it becomes, each to be replaced by a row of features."""
        return sum(part for part in self.prompt if isinstance(part, int))


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """From bytes to what the encoder reads: a table [3, 256], one row a channel."""

    table_C256: NDArray[np.float32]

    def __call__(self, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """normal_HWC of a picture's bytes."""
        return np.stack([self.table_C256[c][pixels_HWC[..., c]] for c in range(3)], axis=-1)


def read_colours(config: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]) -> Colours:
    """Rescaling and normalisation of a `preprocessor_config.json`; `mean` and `std` where it names none.

    Raises:
        BuildError: a step is switched off, or a value cannot be used.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(step, True) is not True:
            raise BuildError(
                f"'{step}' is {config[step]}; only preprocessing with it is supported", where=WHERE
            )
    with read_errors():
        scale = float(config.get("rescale_factor", 1 / 255))
        mean_C, std_C = (
            np.array([float(value) for value in config.get(name) or default], np.float32)
            for name, default in (("image_mean", mean), ("image_std", std))
        )
    if len(mean_C) != 3 or len(std_C) != 3 or not (std_C > 0).all():
        raise BuildError("sizes must be positive, mean and std have three values", where=WHERE)
    # Scaled in float64, normalised in float32: the processors' own order, so that the bits are equal. A
    # table of all 256 values gives the same bits and needs no copy of the picture in float64.
    scaled_256 = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    return Colours(table_C256=(scaled_256[None] - mean_C[:, None]) / std_C[:, None])


def read_resample(config: Mapping[str, Any], default: Image.Resampling) -> Image.Resampling:
    """The filter that images are resized with.

    Raises:
        BuildError: pillow has no such filter.
    """
    with read_errors():
        return Image.Resampling(config.get("resample", default))


@contextmanager
def read_errors() -> Iterator[None]:
    """A setting that is missing or of the wrong type becomes a `BuildError` that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        told = f"a value cannot be used ({type(error).__name__}: {error})"
        raise BuildError(told, where=WHERE) from None


def to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def resized(image: Image.Image, height: int, width: int, resample: Image.Resampling) -> NDArray[np.uint8]:
    """pixels_HWC of the image in another size."""
    return np.asarray(image.resize((width, height), resample=resample))


def tiles_of(pixels_HWC: NDArray[np.uint8], height: int, width: int) -> list[NDArray[np.uint8]]:
    """Tiles of one size, row by row; the picture is a whole number of them."""
    rows, columns = pixels_HWC.shape[0] // height, pixels_HWC.shape[1] // width
    tiles = pixels_HWC.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    return list(tiles.reshape(rows * columns, height, width, 3))


def stacked(tiles: Sequence[NDArray[np.uint8]], colours: Colours) -> NDArray[np.float32]:
    """pixel_values_TCHW of tiles of one size."""
    return np.ascontiguousarray(colours(np.stack(tiles)).transpose(0, 3, 1, 2))
