"""How large an image gets: the largest number of tiles or pixels, set in a family's own image processor.

InternVL            `max_patches` tiles of a fixed size
Idefics3, SmolVLM   the longest edge; tiles of `max_image_size` are cut from what that leaves
LLaVA-OneVision     a list of resolutions, which the model's config repeats and so cannot be shortened
Qwen2-VL and later  no tiles: an image keeps its size up to a number of pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from PIL import Image
from transformers import LlavaOnevisionImageProcessor
from transformers.image_processing_utils import select_best_resolution

from genrecal.core.errors import ConfigError


class ShrinkingImageProcessor(LlavaOnevisionImageProcessor):
    """LLaVA-OneVision's image processor, made to see no image that needs more than `max_tiles` tiles.

    The model finds the resolution again from the image's size, so the image itself is made smaller.
    """

    max_tiles: int

    def preprocess(self, images: Any, *arguments: Any, **options: Any) -> Any:
        """As the parent, images one to a prompt made smaller first; several to a prompt are never cut."""
        if isinstance(images, Image.Image):
            return super().preprocess(self._shrink(images), *arguments, **options)
        images = [
            self._shrink(entry)
            if isinstance(entry, Image.Image)
            else [self._shrink(image) for image in entry]
            if len(entry) == 1
            else entry
            for entry in images
        ]
        return super().preprocess(images, *arguments, **options)

    def _shrink(self, image: Image.Image) -> Image.Image:
        area = self.size["height"] * self.size["width"]
        allowed = [
            (height, width)
            for height, width in self.image_grid_pinpoints
            if height * width <= self.max_tiles * area
        ]
        height, width = select_best_resolution((image.height, image.width), allowed)
        scale = min(height / image.height, width / image.width)
        if scale >= 1:
            return image
        return image.resize(
            (max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC
        )


def cuts_tiles(image_processor: Any) -> bool:
    """Whether it cuts images into tiles, so that `limit_tiles` does something."""
    return type(image_processor).__name__ in TILE_LIMITS


def keeps_size(image_processor: Any) -> bool:
    """Whether images keep about their own size, so that `limit_pixels` does something."""
    return type(image_processor).__name__ == "Qwen2VLImageProcessor"


def limit_tiles(image_processor: Any, max_tiles: int) -> Any:
    """An image processor that cuts an image into `max_tiles` tiles at the most; the given one may be changed.

    One that cuts no tiles is returned as it is, so that one setting serves a pair of families.

    Raises:
        ConfigError: fewer than one tile.
    """
    if max_tiles < 1:
        raise ConfigError(f"{max_tiles} tiles hold no image", fix="Give 1 or more")
    if not cuts_tiles(image_processor):
        return image_processor
    return TILE_LIMITS[type(image_processor).__name__](image_processor, max_tiles)


def limit_pixels(image_processor: Any, max_pixels: int) -> None:
    """Let `image_processor` scale images down to `max_pixels` pixels; an edge keeps one image token at least.

    One that brings all images to fixed sizes is left as it is.

    Raises:
        ConfigError: less than one image token.
    """
    if not keeps_size(image_processor):
        return
    token = (image_processor.patch_size * image_processor.merge_size) ** 2
    if max_pixels < token:
        raise ConfigError(f"{max_pixels} pixels are less than one image token", fix=f"Give {token} or more")
    smallest = min(image_processor.min_pixels, max_pixels)
    image_processor.min_pixels, image_processor.max_pixels = smallest, max_pixels
    image_processor.size = {"shortest_edge": smallest, "longest_edge": max_pixels}


def _internvl(image_processor: Any, max_tiles: int) -> Any:
    image_processor.min_patches = min(image_processor.min_patches, max_tiles)
    image_processor.max_patches = max_tiles
    return image_processor


def _idefics3(image_processor: Any, max_tiles: int) -> Any:
    # The longest edge is brought to this length, so a square image gets the whole square of tiles.
    edge = image_processor.max_image_size["longest_edge"]
    image_processor.size = {"longest_edge": math.isqrt(max_tiles) * edge}
    return image_processor


def _llava_onevision(image_processor: Any, max_tiles: int) -> Any:
    limited = ShrinkingImageProcessor(**image_processor.to_dict())
    limited.max_tiles = max_tiles
    return limited


TILE_LIMITS: dict[str, Callable[[Any, int], Any]] = {
    "GotOcr2ImageProcessor": _internvl,
    "Idefics3ImageProcessor": _idefics3,
    "LlavaOnevisionImageProcessor": _llava_onevision,
    "SmolVLMImageProcessor": _idefics3,
}
