"""Every family's graphs against torch, on images of several sizes, several images, and text alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edge import build as layout
from genrecal.export.families import FAMILIES
from genrecal.export.graph_parity import compare_graphs, open_graph
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.reference import Reference, reference_of
from genrecal.models.processors import load_model, load_processor
from tests.families import noise
from tests.tiny import sharpen

TOLERANCE = 2e-5
# Beside model_types: InternVL with another language model.
NAMES = (*FAMILIES, "internvl_llama")
SIZES = ((33, 57), (120, 41), (24, 24), (90, 20), (200, 130), (7, 60))
QUERIES: list[tuple[str | Image.Image, ...]] = [
    *((noise(*size, seed=number), "what is in the picture?") for number, size in enumerate(SIZES)),
    (noise(48, 48, 7), "first, and", noise(120, 41, 8), "how many red circles are there?"),
    ("which bar is the highest?",),
]


@pytest.fixture(scope="module", params=NAMES)
def strong(
    request: pytest.FixtureRequest, family_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The family's tiny VLM with larger weights: attention is not uniform, so wrong places show."""
    source, folder = family_folders[request.param], tmp_path_factory.mktemp("strong") / request.param
    return sharpen(shutil.copytree(source, folder), 3.0)


@pytest.fixture(scope="module")
def references(strong: Path) -> list[Reference]:
    model = load_model(strong, dtype=torch.float32)
    return reference_of(model, load_processor(strong), QUERIES, max_new_tokens=5)[0]


@pytest.fixture(scope="module")
def graphs(strong: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_graphs(strong, tmp_path_factory.mktemp("graphs"))


def test_features_and_logits_equal_torch(references: list[Reference], graphs: dict[str, Path]) -> None:
    found = compare_graphs(references, graphs)
    assert found.queries == len(QUERIES) and found.forced_top1 == 1
    for graph, difference in found.difference.items():
        assert difference < TOLERANCE * max(1, found.largest[graph])


def test_features_depend_on_the_image(references: list[Reference], graphs: dict[str, Path]) -> None:
    """The comparison would notice: another image gives features that are far away."""
    session = open_graph(graphs[layout.VISION_ENCODER])
    feed = references[0].feeds[0]
    changed = {**feed, "pixel_values": feed["pixel_values"][..., ::-1].copy()}
    features = [session.run(["image_features"], one)[0] for one in (feed, changed)]
    assert np.abs(features[0] - features[1]).max() > 100 * TOLERANCE


@pytest.mark.full
def test_float16_is_close(strong: Path, references: list[Reference], tmp_path: Path) -> None:
    found = compare_graphs(references, export_graphs(strong, tmp_path, precision="fp16", suffix="_fp16"))
    assert 1e-5 < found.relative_logits_error < 1e-2
    assert found.forced_top1 > 0.9


@pytest.mark.parametrize("strong", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_frames_of_a_clip_attend_to_themselves_alone(strong: Path, graphs: dict[str, Path]) -> None:
    """Also beside still images of other sizes; windows are cut at the ends of every frame."""
    model: Any = load_model(strong, dtype=torch.float32)
    grid_I3 = torch.tensor([[3, 4, 6], [1, 8, 2], [2, 2, 4], [1, 10, 14]])
    width = 3 * 2 * model.config.vision_config.patch_size**2
    pixels_NE = torch.rand(int(grid_I3.prod(1).sum()), width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.model.visual(pixels_NE, grid_thw=grid_I3).numpy()
    feed = {"pixel_values": pixels_NE.numpy(), "image_grid_thw": grid_I3.numpy()}
    found = open_graph(graphs[layout.VISION_ENCODER]).run(None, feed)[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE
