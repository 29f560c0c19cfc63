"""Open an image that a user has, or say in one line why it cannot be used."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from genrecal.core.errors import DataError
from genrecal.core.types import ImageSource

# Qwen2-VL's resize refuses anything longer; such an image holds nothing a model can read.
MAX_ASPECT_RATIO = 200


def open_image(source: ImageSource | bytes, *, name: str | None = None) -> Image.Image:
    """Decode an image whole, turn it upright by its EXIF tag and convert it to RGB.

    Args:
        source: a path, a stored image (types.py), or the encoded bytes.
        name: what an error calls the image when `source` is bytes.

    Raises:
        DataError: missing, truncated, of an unknown format, empty, or longer than 200:1.
    """
    where = (name or "image") if isinstance(source, bytes) else str(source)
    try:
        if not isinstance(source, Path | bytes):
            source = source.read()
        image: Image.Image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
        image = ImageOps.exif_transpose(image)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError("no such image", where=where) from None
    except IsADirectoryError:
        raise DataError("is a folder, not an image", where=where) from None
    except UnidentifiedImageError:
        raise DataError("is not an image of a known format", where=where) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"is too large to decode ({error})", where=where) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot be decoded ({error})", where=where, fix="Is the file truncated?") from None
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise DataError(f"is {image.width}x{image.height}, longer than {MAX_ASPECT_RATIO}:1", where=where)
    return image if image.mode == "RGB" else to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB on white where the image is transparent; 16-bit greys are scaled down, not clipped."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if (image.mode == "P" and "transparency" in image.info) or image.mode in ("LA", "RGBA", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
