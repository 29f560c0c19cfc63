"""int8 with fixed scales: TensorRT takes the vision encoders, and the features stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edge.build import VISION_ENCODER
from genrecal.core.errors import BuildError
from genrecal.export.image_dependence import probes
from genrecal.export.initializers import initializer_bytes
from genrecal.export.linter import lint_graph
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize.schemes import scheme_of
from genrecal.export.quantize.static import quantize_static
from genrecal.export.reference import reference_of
from genrecal.export.vision_attention import PARTS
from tests.export.graphs import session

SCHEME = scheme_of("int8", "jetson-tensorrt")[VISION_ENCODER]


@pytest.fixture(scope="module")
def vision(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    return export_graphs(student_folder, folder, only=[VISION_ENCODER], vision_form=PARTS)[VISION_ENCODER]


@pytest.fixture(scope="module")
def feeds(student: tuple[Any, Any]) -> list[dict[str, np.ndarray]]:
    queries = [(image, "what is it") for image in probes().values()]
    references, _ = reference_of(*student, queries, max_new_tokens=1)
    return [feed for reference in references for feed in reference.feeds]


def test_tensorrt_takes_the_graph(vision: Path, feeds: list[Any], tmp_path: Path) -> None:
    target = tmp_path / "static.onnx"
    found = quantize_static(vision, target, SCHEME, feeds)
    assert lint_graph(vision, VISION_ENCODER, "jetson-tensorrt")[1] == []
    assert lint_graph(target, VISION_ENCODER, "jetson-tensorrt")[1] == []
    assert found["quantized"] == {"8 bits": 10} and found["calibration_images"] == len(feeds) == 5
    (kept,) = found["kept_higher"]
    assert "patch_embed" in kept
    assert initializer_bytes(target) < 0.6 * initializer_bytes(vision)
    model = onnx.load(target)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert list(scales[node.input[1]].dims) == []  # one a tensor
        if node.op_type == "DequantizeLinear" and node.input[0] in scales:
            weight = scales[node.input[0]]
            assert weight.data_type == TensorProto.INT8
            assert list(scales[node.input[1]].dims) == [weight.dims[1]]  # one an output channel
    for feed in feeds:
        exact, rounded = (session(path).run(None, feed)[0] for path in (vision, target))
        error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
        assert 1e-4 < error < 0.1


def test_without_images_there_is_no_calibration(vision: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="there are no images to calibrate with"):
        quantize_static(vision, tmp_path / "static.onnx", SCHEME, [])
    assert not (tmp_path / "static.onnx").exists()
