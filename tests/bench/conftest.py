"""A tiny student whose answers differ by image, its fp32 build, and the three sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from bench.types import Query
from edge import build as layout
from genrecal.core.files import write_json
from genrecal.core.manifest import write_manifest
from genrecal.export.onnx_graphs import export_graphs
from tests.bench import scripted
from tests.bench.tiny_sets import COLOURS, mmb_row, mmmu_row, mmvet_row, write_mmb, write_mmmu, write_mmvet
from tests.tiny import TinyPair, sharpen


@pytest.fixture(scope="session")
def student_folder(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpen(shutil.copytree(tiny_pair.student, tmp_path_factory.mktemp("bench") / "student"), 6.0)


@pytest.fixture(scope="session")
def teacher_folder(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpen(shutil.copytree(tiny_pair.teacher, tmp_path_factory.mktemp("bench") / "teacher"), 6.0)


@pytest.fixture(scope="session")
def build_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench_build") / "build"
    export_graphs(student_folder, folder / "onnx")
    for name in layout.SETTINGS_FILES:
        shutil.copyfile(student_folder / name, folder / name)
    write_json(folder / layout.PARITY, {})
    write_manifest(
        folder,
        kind=layout.KIND,
        family="qwen2_vl",
        precision="fp32",
        target="cpu",
        graphs={graph: layout.graph_file(graph, "") for graph in layout.GRAPHS},
        provenance={},
        quantization={},
    )
    return folder


@pytest.fixture(scope="session")
def queries() -> list[Query]:
    """Text alone, one image, two images, images of several sizes: prompts of different lengths."""
    red, wide, tall = (
        Image.new("RGB", size, COLOURS[colour])
        for size, colour in (((48, 48), "red"), ((96, 40), "green"), ((32, 90), "blue"))
    )
    return [
        Query(id="one", parts=(red, "what is in the picture?")),
        Query(id="two", parts=("compare", wide, "with", tall, "and explain your answer.")),
        Query(id="text", parts=("how many red circles are there?",)),
        Query(id="wide", parts=(wide, "read")),
    ]


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    mmvet = {f"v1_{number}": mmvet_row(number, "blue <OR> azure", "rec", "know") for number in range(3)}
    return {
        "mmb": write_mmb(
            folder / "mmb.tsv", [mmb_row(1, ["red", "green"], "A"), mmb_row(2, ["red", "blue"], "A")]
        ),
        "mmmu": write_mmmu(
            folder / "mmmu" / "Art.parquet", [mmmu_row("validation_Art_1"), mmmu_row("validation_Art_2")]
        ).parent,
        "mmvet": write_mmvet(folder / "mm-vet", mmvet),
    }


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return scripted.three_benches(tmp_path_factory.mktemp("benches"))


@pytest.fixture(scope="session")
def large_benches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return scripted.large_benches(tmp_path_factory.mktemp("large_benches"))
