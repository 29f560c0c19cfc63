"""Images as small data URIs within a budget of bytes; each image once."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from genrecal.core.files import sha256_bytes
from genrecal.core.images import open_image

QUALITY = 60
SMALLEST = 120
# Long side of a thumbnail by how many samples there are to show.
SIDES = ((100, 480), (300, 320))
LEAST_SIDE = 200
# One image may take no more than this: noise compresses badly.
MOST_BYTES = 40_000


class Thumbnails:
    """Collects images until the budget is spent.

    Args:
        budget: bytes of all data URIs together.
        samples: how many samples will ask; with many, each gets a smaller image.
    """

    def __init__(self, budget: int, *, samples: int) -> None:
        self.left = budget
        self.uris: dict[str, str] = {}
        self.left_out = 0
        self._side = next((side for most, side in SIDES if samples <= most), LEAST_SIDE)
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
        uri = thumbnail(open_image(source), side=self._side)
        if len(uri) > self.left:
            return None
        key = sha256_bytes(uri.encode())[:12]
        if key not in self.uris:
            self.uris[key] = uri
            self.left -= len(uri)
        return key


def thumbnail(image: Image.Image, *, side: int) -> str:
    """A JPEG of at most `side` pixels and about `MOST_BYTES` as a data URI."""
    while True:
        small = image.convert("RGB")
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, format="JPEG", quality=QUALITY, optimize=True)
        if stream.tell() <= MOST_BYTES or side <= SMALLEST:
            return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
        side = max(SMALLEST, side * 2 // 3)
