"""Tiles: GotOcr2ImageProcessor as the converter sets it, against the authors' own cutting."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import GotOcr2ImageProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from genrecal.convert.processor import MEAN, STD
from tests.convert.reference import DATA, picture

TILES = load_file(DATA / "tiles" / "reference.safetensors")
IMAGES = sorted(name for name in TILES if name != "grids_448")


def test_grids_of_many_sizes() -> None:
    grids = TILES["grids_448"].tolist()
    assert len(grids) == 3000
    found = [
        get_optimal_tiled_canvas((height, width), (448, 448), least, most)
        for width, height, least, most, _, _ in grids
    ]
    assert found == [(columns, rows) for *_, columns, rows in grids]


@pytest.mark.parametrize("name", IMAGES)
def test_tiles_of_an_image(name: str) -> None:
    size, least, most = name.split("_")
    width, height = (int(edge) for edge in size.split("x"))
    processor = GotOcr2ImageProcessor(
        crop_to_patches=int(most) > 1,
        min_patches=int(least),
        max_patches=int(most),
        size={"height": 28, "width": 28},
        image_mean=MEAN,
        image_std=STD,
    )
    cut = processor(images=[picture(width, height)], return_tensors="np")
    expected_THWC = TILES[name].numpy()
    assert cut["num_patches"].tolist() == [len(expected_THWC)]
    scaled = (expected_THWC / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    assert np.abs(cut["pixel_values"] - scaled.transpose(0, 3, 1, 2)).max() < 1e-6
