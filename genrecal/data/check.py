"""Is an image of a test set also in a training set? Compared by what is seen, not by file bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from genrecal.core.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapReport:
    """What `check_overlap` compared and found; images are counted and named as they were given."""

    training_images: int
    testing_images: int
    collisions: tuple[tuple[str, str], ...]  # (name in training, name in testing)

    def require_none(self, *, where: str) -> None:
        """Raise a DataError that names the first collision, if there is any.

        Args:
            where: what was checked, for the error.
        """
        if self.collisions:
            training, testing = self.collisions[0]
            more = f" and {len(self.collisions) - 1} more" if len(self.collisions) > 1 else ""
            raise DataError(
                f"the test image '{testing}' is the training image '{training}'{more}",
                where=where,
                fix="Leave it out of the training set, or the scores measure memory",
            )


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of the size and the decoded RGB pixels: the same for every lossless encoding of an image."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}\n".encode("ascii"))
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def check_overlap(
    training: Iterable[tuple[str, Image.Image]], testing: Iterable[tuple[str, Image.Image]]
) -> OverlapReport:
    """Find every test image whose pixels are those of a training image.

    Both sides are read once and one image at a time, so that sets of any size fit in memory.

    Args:
        training: (name, image) pairs; of equal images the first one is named.
        testing: (name, image) pairs.
    """
    names: dict[str, str] = {}
    training_images = 0
    for name, image in training:
        training_images += 1
        names.setdefault(pixel_hash(image), name)
    collisions: dict[tuple[str, str], None] = {}
    testing_images = 0
    for name, image in testing:
        testing_images += 1
        known = names.get(pixel_hash(image))
        if known is not None:
            collisions[known, name] = None
    return OverlapReport(
        training_images=training_images, testing_images=testing_images, collisions=tuple(collisions)
    )
