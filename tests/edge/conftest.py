"""One tiny student, its checkpoint in memory and its fp32 build, for all tests of the runtime; and a tiny
VLM of every family in the same way."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from edge import build as layout
from edge.model import EdgeModel
from genrecal.core.files import write_json
from genrecal.core.manifest import write_manifest
from genrecal.demo.pair import Qwen2VLShape, write_qwen2_vl
from genrecal.export.onnx_graphs import export_graphs
from genrecal.models.processors import load_model, load_processor
from tests.tiny import CORPUS, sharpen

SHAPE = Qwen2VLShape(
    vocabulary=330,
    vision_hidden=32,
    vision_layers=2,
    vision_heads=2,
    hidden=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate=64,
)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of random pixels: whatever is misplaced shows."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    generator = np.random.default_rng([seed, width, height])
    pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(
        pixels.squeeze(-1) if channels == 1 else pixels, mode="L" if channels == 1 else mode
    )


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge") / "student"
    write_qwen2_vl(folder, CORPUS, shape=SHAPE, seed=5)
    return sharpen(folder, 6.0)


@pytest.fixture(scope="session")
def student(student_folder: Path) -> SimpleNamespace:
    """The checkpoint: `model` in float32 and `processor`, with the tokenizer that `tokenizer.json` holds."""
    processor = load_processor(student_folder)
    # `use_fast=False`, which the image processor needs, also gives the tokenizer that is written in Python;
    # that one does not read tokenizer.json and cuts some texts in other places.
    processor.tokenizer = AutoTokenizer.from_pretrained(student_folder, use_fast=True)
    return SimpleNamespace(model=load_model(student_folder, dtype=torch.float32), processor=processor)


def write_build(student: Path, folder: Path, family: str) -> Path:
    """An fp32 build as the contract has it."""
    export_graphs(student, folder / "onnx")
    for name in layout.SETTINGS_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, folder / name)
    write_json(folder / layout.PARITY, {})
    write_manifest(
        folder,
        kind=layout.KIND,
        family=family,
        precision="fp32",
        target="cpu",
        graphs={graph: layout.graph_file(graph, "") for graph in layout.GRAPHS},
        provenance={},
        quantization={},
    )
    return folder


@pytest.fixture(scope="session")
def build_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the tiny student; tests that alter it take a copy."""
    return write_build(student_folder, tmp_path_factory.mktemp("edge_build") / "build", "qwen2_vl")


@pytest.fixture(scope="session")
def edge_model(build_folder: Path) -> EdgeModel:
    return EdgeModel.open(build_folder, threads=1)


# tests/tiny_families.py's folders that export knows; `internvl_llama` is InternVL above Llama.
FAMILIES = ("idefics3", "internvl", "internvl_llama", "llava_onevision", "qwen2_5_vl", "smolvlm")


@pytest.fixture(scope="session", params=FAMILIES)
def family_pair(
    request: pytest.FixtureRequest, family_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Each family in turn: `student` as above, and `model`, its opened build."""
    name: str = request.param
    family = "internvl" if name == "internvl_llama" else name
    folder = write_build(family_folders[name], tmp_path_factory.mktemp("family_build") / name, family)
    processor = load_processor(family_folders[name])
    student = SimpleNamespace(
        model=load_model(family_folders[name], dtype=torch.float32), processor=processor
    )
    return SimpleNamespace(name=name, student=student, model=EdgeModel.open(folder, threads=1))
