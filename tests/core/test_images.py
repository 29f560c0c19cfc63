"""Hostile and unusual images: decoded the way a person sees them, or refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.images import open_image


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def refuses(source: Path | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_image(source, name="the image")
    line = str(caught.value)
    assert message in line and "\n" not in line
    assert line.startswith(str(source) if isinstance(source, Path) else "the image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.15, 0.5, 0.9])
def test_truncated(tmp_path: Path, kind: str, kept: float) -> None:
    data = encoded(noise(), kind)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_says_so(kind: str) -> None:
    data = encoded(noise(), kind)
    refuses(data[: len(data) // 2], "Is the file truncated?")


def test_a_flipped_byte_in_a_png_is_found() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 255
    refuses(bytes(data), "cannot be decoded")


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "ICO", "SGI", "JPEG2000", "PDF"])
def test_formats_that_are_not_tried(kind: str) -> None:
    """pillow would decode most of them; each is one decoder more for a stranger's bytes."""
    refuses(encoded(noise(), kind), "is not an image of a known format")


def test_what_is_no_image(tmp_path: Path) -> None:
    refuses(b"", "is not an image of a known format")
    refuses(b"hello, I am text", "is not an image of a known format")
    (tmp_path / "empty.png").write_bytes(b"")
    refuses(tmp_path / "empty.png", "is not an image of a known format")
    refuses(tmp_path / "nowhere.png", "no such image")
    refuses(tmp_path, "is a folder, not an image")
    refuses(tmp_path / "empty.png" / "a.png", "no such image")


def test_sizes_that_no_model_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses(encoded(Image.new("RGB", (201, 1)), "PNG"), "is 201x1, longer than 200:1")
    assert open_image(encoded(Image.new("RGB", (200, 1)), "PNG")).size == (200, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refuses(encoded(noise(), "PNG"), "is too large to decode")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LAB", "RGBA", "LA", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = noise().convert("L").convert("I;16") if mode == "I;16" else noise().convert(mode)
    kind = "PNG" if mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16") else "TIFF"
    opened = open_image(encoded(image, kind))
    assert opened.mode == "RGB" and opened.size == (40, 30)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (32, 32), (220, 30, 30)).convert("CMYK")
    pixel = open_image(encoded(red, "JPEG", quality=95)).getpixel((16, 16))
    assert np.abs(np.array(pixel) - (220, 30, 30)).max() < 12


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp), "PNG")))
    assert opened[0, 0].tolist() == [0, 0, 0] and opened[0, -1].min() >= 254
    assert np.abs(opened[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert open_image(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    palette.putpixel((1, 1), 1)
    opened = open_image(encoded(palette, "PNG", transparency=0))
    assert opened.getpixel((0, 0)) == (255, 255, 255) and opened.getpixel((1, 1)) == (0, 255, 0)
    rgb = Image.new("RGB", (8, 8), (1, 2, 3))
    assert open_image(encoded(rgb, "PNG")).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (39, 29)), (6, (29, 0)), (8, (0, 39))])
def test_exif_turns_it_upright(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (40, 30), "white")
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(image, "PNG", exif=exif))
    assert opened.size == ((40, 30) if orientation in (1, 3) else (30, 40))
    assert opened.getpixel(corner) == (255, 0, 0)


def test_bytes_and_paths_agree(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert open_image(data).tobytes() == open_image(tmp_path / "a.png").tobytes() == noise().tobytes()
