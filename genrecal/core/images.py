"""Open an image that a user has, or say in one line why it cannot be used.

What is wrong with the image is a DataError, the same whenever it is read. What is wrong with the machine (a
disk that fails, no file handles left) is none: a run must not take it for the sample's fault.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.types import ImageSource

# Qwen2-VL's resize refuses anything longer; such an image holds nothing a model can read.
MAX_ASPECT_RATIO = 200
# Twice what pillow warns at, its own limit unless another library has changed it; decoded, 0.7 GB of memory.
MAX_PIXELS = 178_956_970
# What decoders are tried, whatever else pillow was built with: each more is more code that reads a stranger's
# bytes, and some (EPS, WMF) start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
# What the system says of a path that leads to no file that we may read, whoever asks again.
OF_THE_PATH = {
    errno.ENOENT: "no such image",
    errno.ENOTDIR: "no such image",
    errno.EISDIR: "is a folder, not an image",
    errno.EACCES: "may not be read",
    errno.EPERM: "may not be read",
    errno.ELOOP: "is a link in a circle",
    errno.ENAMETOOLONG: "has too long a name",
    errno.ENXIO: "is no regular file",
}


def open_image(source: ImageSource | bytes, *, name: str | None = None) -> Image.Image:
    """Decode an image whole, turn it upright by its EXIF tag and convert it to RGB.

    Of an animation the first picture is taken.

    Args:
        source: a path, a stored image (types.py), or the encoded bytes.
        name: what an error calls the image when `source` is bytes.

    Raises:
        DataError: missing, no regular file, truncated, of an unknown format, empty, of more than MAX_PIXELS,
            or longer than 200:1.
        GenrecalError: the disk or the system failed; the image may be sound.
    """
    where = (name or "image") if isinstance(source, bytes) else str(source)
    try:
        with _stream(source, where) as stream, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of images over pillow's limit, not ours, and of damaged metadata
            image: Image.Image = Image.open(stream, formats=FORMATS)
            _require_size(image, where)
            image.load()
            _turn_upright(image)
            return image if image.mode == "RGB" and not image.has_transparency_data else to_rgb(image)
    except (GenrecalError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError("is not an image of a known format", where=where) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"is too large to decode ({error})", where=where) from None
    except OSError as error:
        if error.errno is None:  # pillow's own, about the image
            raise _undecodable(error, where) from None
        if error.errno in OF_THE_PATH:
            raise DataError(OF_THE_PATH[error.errno], where=where) from None
        raise _not_now(error, where) from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise _undecodable(error, where) from None


def image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height as an image's header has them; (0, 0) where there is none that can be read.

    Raises:
        GenrecalError: the disk or the system failed.
    """
    try:
        with _stream(source, str(source)) as stream:
            return Image.open(stream, formats=FORMATS).size
    except MemoryError:
        raise
    except OSError as error:
        if error.errno is None or error.errno in OF_THE_PATH:
            return (0, 0)
        raise _not_now(error, str(source)) from error
    except Exception:  # whatever a damaged header makes a decoder raise; who decodes it says what is wrong
        return (0, 0)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB on white where the image is transparent; 16-bit greys are scaled down, not clipped."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _stream(source: ImageSource | bytes, where: str) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with open(source, "rb", opener=_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise DataError("is no regular file", where=where)
            yield stream
    else:
        yield io.BytesIO(source if isinstance(source, bytes) else source.read())


def _without_waiting(path: str, flags: int) -> int:
    """A pipe would be waited for until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _require_size(image: Image.Image, where: str) -> None:
    """Before anything is decoded."""
    size = f"{image.width}x{image.height}"
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"is too large to decode ({size}, more than {MAX_PIXELS / 1e6:.0f} million pixels)", where=where
        )
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise DataError(f"is {size}, longer than {MAX_ASPECT_RATIO}:1", where=where)


def _turn_upright(image: Image.Image) -> None:
    """In place: a copy of a large image takes as much memory again."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged metadata; the image is sound, and viewers show it as it lies
        return


def _not_now(error: OSError, where: str) -> GenrecalError:
    return GenrecalError(
        f"cannot be read now ({error.strerror})", where=where, fix="Is the disk there? Run again"
    )


def _undecodable(error: Exception, where: str) -> DataError:
    message = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"cannot be decoded ({message})", where=where, fix="Is the file truncated?")
