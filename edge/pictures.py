"""Images that were seen already: their features are not computed again.

    image -> SHA-256 of its pixels and of how it is prepared -> prompt, grid, features

The least recently used features are dropped when they take more than their share of memory.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.preprocess import Picture, Preprocessor
from edge.preprocess.picture import to_rgb
from edge.session import Sessions
from genrecal.core.errors import BuildError

# What is known of an image without its features is small; so many are remembered.
_KNOWN = 4096


@dataclass(slots=True, kw_only=True)
class Look:
    """One image of one query."""

    digest: bytes
    prompt: tuple[str | int, ...]
    grid: tuple[int, int, int] | None
    tokens: int
    image: Image.Image = field(repr=False)
    alone: bool
    picture: Picture | None = field(repr=False)
    """Prepared already; None where the image was seen before."""


class Pictures:
    """Prepares images and keeps their features.

    Args:
        preprocessor: of the build's family.
        settings: what it read.
        sessions: they hold the vision encoder.
        capacity_bytes: how much the kept features may take; 0 keeps none.
        check: raises an error for an image that takes too much memory, before it is encoded.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        settings: Any,
        sessions: Sessions,
        *,
        capacity_bytes: int,
        check: Callable[[Picture], None] = lambda picture: None,
    ) -> None:
        self._preprocessor, self._settings, self._sessions = preprocessor, settings, sessions
        self._capacity_bytes, self._check = capacity_bytes, check
        self._features: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._known: OrderedDict[bytes, tuple[tuple[str | int, ...], Any, int]] = OrderedDict()
        self.held_bytes = 0
        self.hits = 0
        """Images whose features were there already."""
        self.misses = 0

    def look(self, image: Image.Image, *, alone: bool) -> Look:
        """What an image becomes in the prompt; one that was seen before is not prepared again.

        Args:
            image: of any size and mode.
            alone: whether it is the only image of its conversation; some families cut only such an image.

        Raises:
            DataError: it is longer than 200:1, or takes more memory than there is.
        """
        digest = digest_of(image, alone)
        picture = None
        if digest not in self._known:
            picture = self._preprocessor.prepare(image, self._settings, alone)
            self._check(picture)
            self._known[digest] = (picture.prompt, picture.grid, picture.tokens)
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        prompt, grid, tokens = self._known[digest]
        return Look(
            digest=digest, prompt=prompt, grid=grid, tokens=tokens, image=image, alone=alone, picture=picture
        )

    def features(self, look: Look) -> NDArray[Any]:
        """features_MD of an image, computed where they are not kept.

        Raises:
            BuildError: the encoder gives another number of features than the prompt has image tokens.
        """
        if look.digest in self._features:
            self._features.move_to_end(look.digest)
            self.hits += 1
            return self._features[look.digest]
        self.misses += 1
        picture = look.picture or self._preprocessor.prepare(look.image, self._settings, look.alone)
        look.picture = None  # its pixels are as large as the features, and not needed again
        features_MD = self._sessions.encode_image(picture.inputs, tilewise=self._preprocessor.tilewise)
        if len(features_MD) != look.tokens:
            raise BuildError(
                f"its vision encoder gives {len(features_MD)} features for {look.tokens} image tokens",
                fix="Export it again; its preprocessing and its graphs are not of one model",
            )
        if features_MD.nbytes <= self._capacity_bytes:
            self._features[look.digest] = features_MD
            self.held_bytes += features_MD.nbytes
            while self.held_bytes > self._capacity_bytes:
                _, dropped_MD = self._features.popitem(last=False)
                self.held_bytes -= dropped_MD.nbytes
        return features_MD

    def clear(self) -> None:
        """Forget every image."""
        self._features.clear()
        self._known.clear()
        self.held_bytes = 0


def digest_of(image: Image.Image, alone: bool) -> bytes:
    """SHA-256 of an image's pixels; the settings of one `Pictures` never change."""
    rgb = to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height} {alone}".encode())
    digest.update(np.asarray(rgb).tobytes())
    return digest.digest()
