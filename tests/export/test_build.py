"""Whole exports: the folder that the runtime opens, its report, and the gate before it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edge.build import GRAPHS, SETTINGS_FILES, open_build
from edge.model import EdgeModel
from genrecal.core.errors import BuildError
from genrecal.core.manifest import verify_manifest
from genrecal.export import parity
from genrecal.export.build import export_run, export_student
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize import initializer_bytes, scheme
from genrecal.models.processors import load_model, load_processor

QUERIES = parity.default_queries()[:3]
Exporter = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """precision -> a build of the student, exported once."""
    folder, done = tmp_path_factory.mktemp("builds"), {}

    def export(precision: str) -> Path:
        if precision not in done:
            done[precision] = export_run(
                student_folder, folder / precision, precision=precision, parity_prompts=QUERIES
            )
        return done[precision]

    return export


@pytest.mark.parametrize(("precision", "suffix"), [("fp32", ""), ("int8", "_int8")])
def test_a_build_is_what_the_runtime_opens(exported: Exporter, precision: str, suffix: str) -> None:
    folder = exported(precision)
    build = open_build(folder)
    assert (build.family, build.precision) == ("qwen2_vl", precision)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *SETTINGS_FILES,
        *(f"onnx/{graph}{suffix}.onnx" for graph in GRAPHS),
        "parity.json",
        "README.md",
        "manifest.json",
    }
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]
    answer = EdgeModel(build, *_cpu()).answer((Image.new("RGB", (50, 40), "red"), "how many?"))
    assert answer.token_ids


def _cpu() -> tuple[Any, int]:
    from edge.device import require_device

    return require_device("cpu"), 1


def test_the_manifest_says_what_int8_means(exported: Exporter) -> None:
    folder = exported("int8")
    manifest = verify_manifest(folder, kind="build")
    assert scheme().items() <= manifest["quantization"].items()
    for graph, found in manifest["quantization"]["graphs"].items():
        assert found["bytes"] == initializer_bytes(folder / f"onnx/{graph}_int8.onnx")
        assert found["bytes"] < 0.35 * found["fp32_bytes"]
    assert manifest["provenance"]["weights"]
    assert manifest["versions"]["onnxruntime"]


def test_the_report_is_measured(exported: Exporter) -> None:
    report = json.loads((exported("int8") / "parity.json").read_text())["precisions"]
    assert set(report) == {"fp32", "int8"}
    assert report["fp32"]["difference"]["decoder_model_merged"] < parity.LOGITS_TOLERANCE
    assert report["fp32"]["greedy_answers_equal"] == report["fp32"]["queries"] == len(QUERIES)
    assert 1e-4 < report["int8"]["relative_logits_error"] < 0.2
    assert report["int8"]["forced_top1"] > 0.7
    assert report["int8"]["worst"]["query"][0].startswith("<image ")
    assert set(json.loads((exported("fp32") / "parity.json").read_text())["precisions"]) == {"fp32"}


def test_fifty_questions_about_images_of_different_sizes(student_folder: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    sizes = [(generator.randint(20, 300), generator.randint(20, 300)) for _ in range(50)]
    queries = [
        (Image.effect_noise(size, 90).convert("RGB"), f"how many circles {number}")
        for number, size in enumerate(sizes)
    ]
    build = export_run(student_folder, tmp_path / "build", precision="fp32", parity_prompts=queries)
    found = json.loads((build / "parity.json").read_text())["precisions"]["fp32"]
    assert found["queries"] == found["prompts_equal"] == found["greedy_answers_equal"] == 50
    assert found["difference"]["decoder_model_merged"] < 1e-3


def test_exporting_again_gives_the_same_bytes(
    exported: Exporter, student_folder: Path, tmp_path: Path
) -> None:
    first = exported("int8")
    again = export_run(student_folder, tmp_path / "again", precision="int8", parity_prompts=QUERIES)
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(first)).read_bytes(), path.name


def test_weights_outside_their_graph_travel_along(
    exported: Exporter, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As graphs above 2 GB have them; here the exporter is told to do so."""
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    folder = export_run(student_folder, tmp_path / "build", precision="fp32", parity_prompts=QUERIES[:1])
    assert f"onnx/{GRAPHS[0]}.onnx_data" in open_build(folder).manifest["files"]
    for graph in GRAPHS:
        size = initializer_bytes(folder / f"onnx/{graph}.onnx")
        assert size == initializer_bytes(exported("fp32") / f"onnx/{graph}.onnx")
        assert (folder / f"onnx/{graph}.onnx").stat().st_size < 0.8 * size + 200_000


def test_graphs_of_another_checkpoint_do_not_pass_the_gate(exported: Exporter, student_folder: Path) -> None:
    """One weight more than rounding away is found, and named with the worst query."""
    model = load_model(student_folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.up_proj.weight[3] += 0.5
    checkpoint = parity.Checkpoint(model=model, processor=load_processor(student_folder))
    found = parity.compare(parity.checkpoint_answers(checkpoint, QUERIES), exported("fp32"))
    assert found.difference["vision_encoder"] < 1e-3
    assert found.difference["decoder_model_merged"] > parity.LOGITS_TOLERANCE
    with pytest.raises(BuildError, match=r"logits differ by .*allowed is 0.001 \(worst query: .*<image "):
        parity.require_equal(found, where=student_folder)


def test_a_failing_gate_leaves_no_build(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older build stays as it was when the new graphs are wrong."""
    output = tmp_path / "build"
    old = export_run(student_folder, output, precision="fp32", parity_prompts=QUERIES[:1])
    before = (old / "manifest.json").read_bytes()

    def wrong_graphs(model: Any, folder: Path) -> list[Path]:
        model = load_model(student_folder, dtype=torch.float32)
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)
        return export_graphs(model, folder)

    monkeypatch.setattr("genrecal.export.build.export_graphs", wrong_graphs)
    with pytest.raises(BuildError, match="the fp32 graphs are not this checkpoint"):
        export_run(student_folder, output, precision="int8", parity_prompts=QUERIES[:1])
    assert (output / "manifest.json").read_bytes() == before
    verify_manifest(output, kind="build")
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


def test_a_folder_of_something_else_is_not_replaced(student_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(student_folder, tmp_path / "mine")
    with pytest.raises(BuildError, match="exists and is no build"):
        export_student(student_folder, tmp_path / "mine", precision="int8", provenance={})
    with pytest.raises(BuildError, match=r"unknown precision 'int4'\. Known: fp32, int8"):
        export_student(student_folder, tmp_path / "new", precision="int4", provenance={})
    assert not (tmp_path / "new").exists()


def test_a_shape_or_a_nan_counts_as_infinitely_far() -> None:
    difference = {"graph": 0.0}
    assert parity._note(difference, "graph", np.zeros((2, 3)), np.zeros((3, 2))) == np.inf
    assert parity._note(difference, "graph", np.array([np.nan]), np.zeros(1)) == np.inf
    assert difference == {"graph": np.inf}
