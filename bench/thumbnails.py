"""Images as small data URIs within a budget of bytes; each image once."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, features

from genrecal.core.files import sha256_bytes
from genrecal.core.images import open_image

# WebP takes two thirds of JPEG's bytes for a photograph; a Pillow that was built without it has JPEG.
FORMAT, QUALITY = ("WEBP", 50) if features.check("webp") else ("JPEG", 60)
SMALLEST = 120
# Long side of a thumbnail by how many samples there are to show.
SIDES = ((100, 480), (300, 320))
# With more samples the first ones, which say most, have large images, and the others small ones.
FIRST, FIRST_SIDE, LEAST_SIDE = 80, 320, 160
# One image may take no more than this: noise compresses badly.
MOST_BYTES = 40_000


class Thumbnails:
    """Collects images until the budget is spent.

    Args:
        budget: bytes of all data URIs together.
        samples: how many samples will ask; with many, most get a smaller image.
    """

    def __init__(self, budget: int, *, samples: int) -> None:
        self.left = budget
        self.uris: dict[str, str] = {}
        self.left_out = 0
        self._side = next((side for most, side in SIDES if samples <= most), None)
        self._keys: dict[Path | bytes, str | None] = {}

    def add(self, source: Path | bytes) -> str | None:
        """The key of an image in `uris`; None where the budget has no room for it.

        Raises:
            DataError: the image cannot be opened.
        """
        if source not in self._keys:
            self._keys[source] = self._add(source)
        if self._keys[source] is None:
            self.left_out += 1
        return self._keys[source]

    def _add(self, source: Path | bytes) -> str | None:
        if self.left <= 0:
            return None
        side = self._side or (FIRST_SIDE if len(self.uris) < FIRST else LEAST_SIDE)
        uri = thumbnail(open_image(source), side=side)
        if len(uri) > self.left:
            return None
        key = sha256_bytes(uri.encode())[:12]
        if key not in self.uris:
            self.uris[key] = uri
            self.left -= len(uri)
        return key


def thumbnail(image: Image.Image, *, side: int) -> str:
    """A picture of at most `side` pixels and about `MOST_BYTES` as a data URI."""
    while True:
        small = image.convert("RGB")
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, format=FORMAT, quality=QUALITY, optimize=True)
        if stream.tell() <= MOST_BYTES or side <= SMALLEST:
            return f"data:image/{FORMAT.lower()};base64," + base64.b64encode(stream.getvalue()).decode()
        side = max(SMALLEST, side * 2 // 3)
