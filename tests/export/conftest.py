"""One tiny student, its checkpoint in memory and its fp32 graphs, for all export tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.demo.pair import Qwen2VLShape, write_qwen2_vl
from genrecal.export.onnx_graphs import export_graphs
from genrecal.models.processors import load_model, load_processor
from tests.tiny import sharpen

CORPUS = ("how many circles are in the image", "the answer is three red squares", "name the tallest bar") * 8


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    write_qwen2_vl(folder, CORPUS, shape=Qwen2VLShape(), seed=3)
    return sharpen(folder, 4.0)


@pytest.fixture(scope="session")
def student(student_folder: Path) -> tuple[Any, Any]:
    """The model in float32 and its processor."""
    return load_model(student_folder, dtype=torch.float32), load_processor(student_folder)


@pytest.fixture(scope="session")
def fp32_graphs(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(student_folder, folder)
    return folder
