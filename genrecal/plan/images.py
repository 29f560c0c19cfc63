"""What an image is to each family: how many tokens, and the tensors that its vision encoder reads.

    InternVL, NVLM-D        tiles of one size                       a fixed number of tokens each
    Idefics3, SmolVLM       the same, as images of one sample
    LLaVA-OneVision         the whole image, and a grid of tiles with a token behind each row
    Gemma 3                 one square
    Qwen2-VL and later      patches in the image's own size, 2 x 2 to a token

`tiles` counts all that a family of tiles reads of an image, its overview too. For a family that keeps an
image's size it stands for so many squares of TILE_PX: one number describes an image to both of a pair.
Pixels are ones: only their shape is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# A tile of InternVL2.5, the paper's teachers and students.
TILE_PX = 448


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTokens:
    """One image as a VLM reads it."""

    ids: list[int]
    """Its place in the prompt, tokens that enclose it included."""
    vision: dict[str, torch.Tensor]
    token_type_ids: bool = False
    """Whether the family marks image tokens in a row of its own."""


def image_tokens(config: Any, *, tiles: int, pixels: int | None = None) -> ImageTokens:
    """An image of `tiles` tiles.

    Args:
        config: the VLM's.
        tiles: see above; at least 1.
        pixels: the image's size for families that keep it; default: `tiles` times TILE_PX squared.
    """
    return IMAGES[config.model_type](config, tiles, pixels or tiles * TILE_PX**2)


def _side(value: Any) -> int:
    return int(value[0]) if isinstance(value, list | tuple) else int(value)


def _internvl(config: Any, tiles: int, _: int) -> ImageTokens:
    side = _side(config.vision_config.image_size)
    return ImageTokens(
        ids=[config.image_token_id] * (tiles * config.image_seq_length),
        vision={"pixel_values": torch.ones(tiles, 3, side, side)},
    )


def _idefics3(config: Any, tiles: int, _: int) -> ImageTokens:
    side = _side(config.vision_config.image_size)
    tokens = (side // config.vision_config.patch_size) ** 2 // config.scale_factor**2
    return ImageTokens(
        ids=[config.image_token_id] * (tiles * tokens),
        vision={
            "pixel_values": torch.ones(1, tiles, 3, side, side),
            "pixel_attention_mask": torch.ones(1, tiles, side, side, dtype=torch.int64),
        },
    )


def _llava_onevision(config: Any, tiles: int, _: int) -> ImageTokens:
    side = _side(config.vision_config.image_size)
    grids = [(height // side, width // side) for height, width in config.image_grid_pinpoints]
    # The grid nearest in number to what is left beside the overview; a square one where several are.
    rows, columns = min(
        grids, key=lambda grid: (abs(math.prod(grid) + 1 - max(tiles, 2)), abs(grid[0] - grid[1]))
    )
    patches = side // config.vision_config.patch_size
    height, width = rows * patches, columns * patches
    ratio = math.sqrt(rows * columns / int(config.vision_aspect_ratio.removeprefix("anyres_max_")))
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
    return ImageTokens(
        ids=[config.image_token_id] * (patches**2 + height * (width + 1)),
        vision={
            "pixel_values": torch.ones(1, rows * columns + 1, 3, side, side),
            "image_sizes": torch.tensor([[rows * side, columns * side]]),
        },
    )


def _gemma3(config: Any, _: int, __: int) -> ImageTokens:
    side = _side(config.vision_config.image_size)
    return ImageTokens(
        ids=[config.image_token_id] * config.mm_tokens_per_image,
        vision={"pixel_values": torch.ones(1, 3, side, side)},
        token_type_ids=True,
    )


def _qwen(config: Any, _: int, pixels: int) -> ImageTokens:
    vision = config.vision_config
    merge = vision.spatial_merge_size
    step = vision.patch_size * merge
    side = max(1, round(math.sqrt(pixels) / step)) * merge
    channels = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    tokens = (side // merge) ** 2
    return ImageTokens(
        ids=[config.vision_start_token_id, *[config.image_token_id] * tokens, config.vision_end_token_id],
        vision={
            "pixel_values": torch.ones(side**2, channels),
            "image_grid_thw": torch.tensor([[1, side, side]]),
        },
    )


IMAGES: dict[str, Callable[[Any, int, int], ImageTokens]] = {
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "nvlm_d": _internvl,
    "qwen2_5_vl": _qwen,
    "qwen2_vl": _qwen,
    "qwen3_vl": _qwen,
    "smolvlm": _idefics3,
}
