"""The largest number of tiles or pixels, in each family's own image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.errors import ConfigError
from genrecal.data.batch import collate_one
from genrecal.data.pair import tokenize
from genrecal.models.image_limits import TILE_LIMITS, cuts_tiles, keeps_size
from genrecal.models.processors import load_processor
from genrecal.models.vlm import body_features
from tests.families import conversation, noise
from tests.tiny_families import TILE
from tests.train.conftest import folder_hash

TILED = ("idefics3", "internvl", "internvl_llama", "llava_onevision", "smolvlm")
PIXELS = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
SIZES = ((72, 72), (150, 40), (40, 150), (33, 57), (24, 24), (71, 73), (10, 200))


def read(processor: Any, *sizes: tuple[int, int]) -> Any:
    sample = conversation("sized", "<image>" * len(sizes) + "what is it?", "noise")
    images = [noise(width, height, place) for place, (width, height) in enumerate(sizes)]
    return tokenize(sample, processor, images, max_tokens=4096)


def tiles(processor: Any, row: Any) -> int:
    """Tiles of a single image without the overview of the whole."""
    pixels = row.vision["pixel_values"]
    count = pixels.shape[1] if pixels.dim() == 5 else len(pixels)
    return max(1, count - 1)


@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_no_image_has_more_tiles(name: str, family_folders: dict[str, Path]) -> None:
    from genrecal.models.processors import load_model

    folder = family_folders[name]
    before, model = folder_hash(folder), load_model(folder)
    found: dict[int, list[int]] = {}
    for limit in (1, 2, 4):
        processor = load_processor(folder, max_tiles=limit)
        rows = [read(processor, size) for size in SIZES]
        found[limit] = [tiles(processor, row) for row in rows]
        assert max(found[limit]) <= limit
        # The model agrees with the processor about the number of image tokens.
        batch = collate_one(
            [*rows, read(processor, (72, 72), (30, 90))], padding=processor.tokenizer.pad_token_id
        )
        assert torch.isfinite(body_features(model, batch)).all()
    assert set(found[1]) == {1} and max(found[4]) == 4
    assert folder_hash(folder) == before


@pytest.mark.parametrize("name", PIXELS)
@torch.no_grad()
def test_no_image_has_more_pixels(name: str, family_folders: dict[str, Path]) -> None:
    from genrecal.models.processors import load_model

    folder = family_folders[name]
    before, model = folder_hash(folder), load_model(folder)
    for limit in (24 * 24, 80 * 80):
        processor = load_processor(folder, max_pixels=limit)
        # The last is too narrow: each of its edges keeps one image token at least.
        rows = [read(processor, size) for size in SIZES[:-1]]
        areas = [int(row.vision["image_grid_thw"].prod()) * 4 * 4 for row in rows]
        assert max(areas) <= limit
        assert max(areas) > limit // 2  # and the room is used
        batch = collate_one(rows, padding=processor.tokenizer.pad_token_id)
        assert torch.isfinite(body_features(model, batch)).all()
    assert folder_hash(folder) == before


def test_small_images_are_left_as_they_are(family_folders: dict[str, Path]) -> None:
    for name in TILED:
        free, limited = (load_processor(family_folders[name], **limit) for limit in ({}, {"max_tiles": 9}))
        for size in ((TILE, TILE), (2 * TILE, TILE)):
            if name in ("idefics3", "smolvlm"):
                continue  # they bring every image to the same longest edge
            first, second = read(free, size), read(limited, size)
            assert torch.equal(first.vision["pixel_values"], second.vision["pixel_values"])


def test_a_limit_serves_a_pair_of_families(family_folders: dict[str, Path]) -> None:
    """What cuts no tiles is left alone by a limit of tiles, and likewise with pixels."""
    for name, folder in family_folders.items():
        free = load_processor(folder).image_processor
        assert (cuts_tiles(free), keeps_size(free)) == (name in TILED, name in PIXELS)
        for limit, families in (("max_tiles", TILED), ("max_pixels", PIXELS)):
            limited = load_processor(folder, **{limit: 1 if limit == "max_tiles" else 300}).image_processor
            same = type(limited) is type(free) and limited.to_dict() == free.to_dict()
            assert same == (name not in families)


def test_limits_that_leave_no_image_are_errors(family_folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="0 tiles hold no image"):
        load_processor(family_folders["internvl"], max_tiles=0)
    with pytest.raises(ConfigError, match=r"63 pixels are less than one image token\. Give 64 or more"):
        load_processor(family_folders["qwen2_vl"], max_pixels=63)


def test_every_tile_cutting_processor_has_a_limit(family_folders: dict[str, Path]) -> None:
    kinds = {
        name: type(load_processor(folder).image_processor).__name__ for name, folder in family_folders.items()
    }
    assert {kinds[name] for name in TILED} == set(TILE_LIMITS)
