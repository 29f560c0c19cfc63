"""The whole of an export's graphs: their names and axes, the same bytes twice, errors of one line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from genrecal.core.errors import BuildError, ModelError
from genrecal.export import initializers
from genrecal.export.onnx_graphs import export_graphs
from tests.export.graphs import session

GRAPHS = ["decoder_model_merged.onnx", "embed_tokens.onnx", "vision_encoder.onnx"]


@pytest.fixture(scope="module")
def graphs(fp32_graphs: Path) -> SimpleNamespace:
    return SimpleNamespace(
        vision=session(fp32_graphs / "vision_encoder.onnx"),
        decoder=session(fp32_graphs / "decoder_model_merged.onnx"),
    )


def test_the_graphs_name_their_dynamic_axes(graphs: SimpleNamespace) -> None:
    shapes = {
        entry.name: entry.shape for entry in (*graphs.vision.get_inputs(), *graphs.vision.get_outputs())
    }
    assert shapes == {
        "pixel_values": ["num_patches", 384],
        "image_grid_thw": ["num_images", 3],
        "image_features": ["num_image_tokens", 64],
    }
    shapes = {entry.name: entry.shape for entry in graphs.decoder.get_inputs()}
    assert shapes["position_ids"] == [3, "batch_size", "sequence_length"]
    assert shapes["past_key_values.2.value"] == ["batch_size", 2, "past_sequence_length", 16]


def test_the_export_is_quiet(student_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    export_graphs(student_folder, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before
    assert sorted(path.name for path in tmp_path.iterdir()) == GRAPHS


@pytest.mark.parametrize("inline_bytes", [initializers.INLINE_BYTES, 0], ids=["inside", "beside"])
def test_two_exports_are_byte_identical(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    monkeypatch.setattr(initializers, "INLINE_BYTES", inline_bytes)
    for name in ("first", "second"):
        export_graphs(student_folder, tmp_path / name)
    names = [path.name for path in sorted((tmp_path / "first").iterdir())]
    assert len(names) == (6 if inline_bytes == 0 else 3)
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_weights_lie_in_the_graph_as_they_are_in_the_checkpoint(student: Any, fp32_graphs: Path) -> None:
    """Every float weight bit by bit, transposed where a MatMul takes it so; the tied head is one of them."""
    state = student[0].state_dict()
    seen = set()
    for name in GRAPHS:
        for tensor in onnx.load(fp32_graphs / name).graph.initializer:
            source, *steps = tensor.name.split("/")
            if source in state:
                expected = state[source]
                for step in steps:
                    kind, _, axes = step.partition("_")
                    numbers = [int(axis) for axis in axes.split("_")]
                    expected = expected.permute(numbers) if kind == "Transpose" else expected.reshape(numbers)
                assert (numpy_helper.to_array(tensor) == expected.numpy()).all()
                seen.add(source)
    assert seen == set(state) - {"lm_head.weight"}


def test_every_layer_is_a_product_with_a_constant(student: Any, fp32_graphs: Path) -> None:
    """Quantizers see MatMul with an initializer: no weight is transposed or reshaped at run time."""
    model = student[0]
    parts = {
        "vision_encoder.onnx": [*model.model.visual.modules(), model.lm_head],  # the patches are one more
        "decoder_model_merged.onnx": [*model.model.language_model.modules(), model.lm_head],
    }
    for name, modules in parts.items():
        graph = onnx.load(fp32_graphs / name).graph
        weights = {tensor.name for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
        assert len(products) == sum(isinstance(module, torch.nn.Linear) for module in modules)
        assert not [
            node for node in graph.node if node.op_type in ("Gemm", "Transpose") and weights & {*node.input}
        ]


def test_another_family_is_refused(student_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(student_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "pixtral"}))
    with pytest.raises(ModelError, match=r"'pixtral' cannot be exported. Supported: idefics3, internvl"):
        export_graphs(other, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_a_failing_exporter_is_one_line(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nsuch operator")

    monkeypatch.setattr("genrecal.export.onnx_graphs.onnx_export_from_model", fail)
    with pytest.raises(BuildError, match=r"the ONNX export failed \(no such operator\)") as caught:
        export_graphs(student_folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
