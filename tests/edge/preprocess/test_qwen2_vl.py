"""Pixels, bit by bit, against the slow Hugging Face processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference_resize

from edge.preprocess import Picture
from edge.preprocess.qwen2_vl import prepare, read, smart_resize
from genrecal.core.errors import BuildError, DataError
from tests.edge.conftest import noise

# The demo student's shape, the sizes of the published Qwen2-VL, and neither one's.
PROCESSORS = {
    "demo": {"patch_size": 8, "min_pixels": 32 * 32, "max_pixels": 192 * 192},
    "published": {},
    "small": {"patch_size": 14, "min_pixels": 4 * 28 * 28, "max_pixels": 16 * 28 * 28},
    "other": {"patch_size": 4, "merge_size": 3, "temporal_patch_size": 1, "min_pixels": 500, "resample": 2},
}
# The Hugging Face processor cannot read images that are 1 or 3 pixels high; see the docstring of ours.
SIZES = [
    (1, 2),
    (5, 5),
    (2, 2),
    (7, 5),
    (28, 28),
    (33, 57),
    (640, 480),
    (1000, 6),
    (6, 1000),
    (100, 99),
    (399, 2),
]


def patches(picture: Picture) -> np.ndarray:
    return picture.inputs["pixel_values"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_bit_identical(name: str) -> None:
    reference = Qwen2VLImageProcessor(**PROCESSORS[name])
    ours = read(json.loads(reference.to_json_string()), {})
    for width, height in SIZES:
        image = noise(width, height)
        expected = reference(images=[image], return_tensors="np")
        found = prepare(image, ours)
        grid_I3 = found.inputs["image_grid_thw"]
        assert np.array_equal(grid_I3, expected["image_grid_thw"]), (width, height)
        assert np.array_equal(patches(found), expected["pixel_values"]), (width, height)
        assert patches(found).dtype == np.float32 and grid_I3.dtype == np.int64
        assert found.grid == tuple(grid_I3[0])
        assert found.prompt == (found.tokens,) == (grid_I3.prod() // reference.merge_size**2,)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "YCbCr", "P", "1", "I"])
def test_modes_are_bit_identical(mode: str) -> None:
    image = noise(70, 50).convert(mode) if mode in ("P", "1", "I") else noise(70, 50, mode)
    reference = Qwen2VLImageProcessor(**PROCESSORS["demo"])
    expected = reference(images=[image], return_tensors="np")["pixel_values"]
    found = prepare(image, read(PROCESSORS["demo"], {}))
    assert image.mode == mode
    assert np.array_equal(patches(found), expected)


@pytest.mark.parametrize("height", [1, 3])
def test_an_image_one_or_three_pixels_high_is_an_image(height: int) -> None:
    """Rows of one colour each: every patch must hold three clean channels."""
    image = Image.new("RGB", (40, height), (255, 128, 0))
    config = {**PROCESSORS["demo"], "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    channels = patches(prepare(image, read(config, {}))).reshape(-1, 3, 2 * 8 * 8)
    for channel, value in enumerate((255, 128, 0)):
        assert np.array_equal(channels[:, channel], np.full_like(channels[:, channel], value / 255))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    factor=st.sampled_from([16, 28]),
    blocks=st.tuples(st.integers(1, 16), st.integers(1, 500)),
)
def test_sizes_are_the_references(height: int, width: int, factor: int, blocks: tuple[int, int]) -> None:
    pixels = {
        "factor": factor,
        "min_pixels": blocks[0] * factor**2,
        "max_pixels": (blocks[0] + blocks[1]) * factor**2,
    }
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(DataError, match="longer than 200:1"):
            smart_resize(height, width, **pixels)
    else:
        assert smart_resize(height, width, **pixels) == reference_resize(height, width, **pixels)


def test_newer_files_say_size() -> None:
    ours = read({"size": {"shortest_edge": 1000, "longest_edge": 9000}}, {})
    assert (ours.min_pixels, ours.max_pixels) == (1000, 9000)
    size = {"shortest_edge": 1, "longest_edge": 2}
    both = read({"size": size, "min_pixels": 5, "max_pixels": 6}, {})
    assert (both.min_pixels, both.max_pixels) == (5, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_normalize": False}, "'do_normalize' is False"),
        ({"patch_size": "eight"}, "a value cannot be used"),
        ({"patch_size": 0}, "sizes must be positive"),
        ({"image_std": [1.0, 0.0, 1.0]}, "sizes must be positive"),
        ({"image_mean": [0.5]}, "mean and std have three values"),
        ({"size": [3, 4]}, "a value cannot be used"),
        ({"resample": 77}, "a value cannot be used"),
    ],
)
def test_settings_that_cannot_be_used(content: dict, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read(content, {})


def test_the_students_own_file(student_folder: Path) -> None:
    content = json.loads((student_folder / "preprocessor_config.json").read_text())
    reference = Qwen2VLImageProcessor.from_pretrained(student_folder)
    image = noise(123, 77)
    expected = reference(images=[image], return_tensors="np")["pixel_values"]
    assert np.array_equal(patches(prepare(image, read(content, {}))), expected)
