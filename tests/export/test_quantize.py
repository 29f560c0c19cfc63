"""int8 graphs: their size, their error, what the manifest says of them, and that no CPU saturates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.build import GRAPHS
from genrecal.core.errors import BuildError
from genrecal.export import quantize
from genrecal.export.quantize import initializer_bytes, quantize_graph, scheme
from tests.export.extremes import open_session, worst_error

# An 8-bit weight is off by at most 1/255 of its block's largest and an 8-bit activation by 1/254 of its own.
ROUNDING = 2 / 254


@pytest.fixture(scope="module")
def int8_graphs(fp32_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    for name in GRAPHS:
        quantize_graph(fp32_graphs / f"{name}.onnx", folder / f"{name}.onnx")
    return folder


def test_the_weights_take_at_most_035_of_the_bytes(fp32_graphs: Path, int8_graphs: Path) -> None:
    fp32, int8 = (
        sum(initializer_bytes(folder / f"{name}.onnx") for name in GRAPHS)
        for folder in (fp32_graphs, int8_graphs)
    )
    assert int8 <= 0.35 * fp32


def test_every_matrix_is_int8(int8_graphs: Path) -> None:
    for name in GRAPHS:
        graph = onnx.load(int8_graphs / f"{name}.onnx").graph
        matrices = [
            tensor.name
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
            and sum(size > 1 for size in tensor.dims) > 1
            and "scales" not in tensor.name
        ]
        assert not matrices, name


def test_the_manifest_describes_the_operators_that_are_there(int8_graphs: Path) -> None:
    said = scheme()
    graph = onnx.load(int8_graphs / "decoder_model_merged.onnx").graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 3 * 7 + 1  # seven matrices a layer and the head
    for node in nodes:
        settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        assert settings["bits"] == said["weights"]["bits"] == 8
        assert f"each {settings['block_size']} input channels" in said["weights"]["scale"]
        assert f"accuracy_level {settings['accuracy_level']}" in said["activations"]
        assert f"{node.domain}.{node.op_type}" == said["weights"]["operator"]
        assert len(node.input) == 3  # no zero points: symmetric
    values = [
        numpy_helper.to_array(tensor).astype(int) - 128
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.UINT8
    ]
    assert [min(map(np.min, values)), max(map(np.max, values))] == said["weights"]["range"]


def test_the_embedding_is_rounded_row_by_row(fp32_graphs: Path, int8_graphs: Path) -> None:
    """A small row keeps its precision beside a large one."""
    ids = np.arange(200)[None]
    expected, found = (
        open_session(str(folder / "embed_tokens.onnx")).run(None, {"input_ids": ids})[0][0]
        for folder in (fp32_graphs, int8_graphs)
    )
    largest = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(expected - found) <= largest / 254 * 1.001).all()
    assert np.abs(expected - found).max() > 0


def test_vision_features_stay_close(fp32_graphs: Path, int8_graphs: Path) -> None:
    grid = np.array([[1, 10, 8], [1, 4, 6]])
    pixels = np.random.default_rng(0).normal(size=(104, 384)).astype(np.float32)
    expected, found = (
        open_session(str(folder / "vision_encoder.onnx")).run(
            None, {"pixel_values": pixels, "image_grid_thw": grid}
        )[0]
        for folder in (fp32_graphs, int8_graphs)
    )
    assert np.linalg.norm(expected - found) < 0.05 * np.linalg.norm(expected)


def product(weight_KN: np.ndarray, path: Path) -> Path:
    """A graph of one matrix product."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", weight_KN.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", weight_KN.shape[1]])],
        [numpy_helper.from_array(weight_KN.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save_model(model, path)
    return path


# 160 is five blocks of 32; 392 leaves a block that is a quarter full, as a patch of 14 pixels does.
EXTREMES = {
    "all largest": np.ones((64, 48)),
    "all lowest": -np.ones((160, 36)),
    "alternating": np.where(np.indices((392, 33)).sum(0) % 2, 1.0, -1.0),
    "one outlier a block": np.where(np.arange(384)[:, None] % 32, 1e-3, 1.0) * np.ones((384, 40)),
}


@pytest.mark.parametrize("weight_KN", EXTREMES.values(), ids=EXTREMES)
def test_extreme_activations_do_not_saturate_here(weight_KN: np.ndarray, tmp_path: Path) -> None:
    source, target = product(weight_KN, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantize_graph(source, target)
    assert worst_error(str(source), str(target)) < ROUNDING


@pytest.mark.parametrize("weight_KN", EXTREMES.values(), ids=EXTREMES)
def test_extreme_activations_do_not_saturate_on_a_cpu_without_vnni(
    weight_KN: np.ndarray, tmp_path: Path
) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user) to emulate an x86 CPU that has AVX2 and no VNNI")
    source, target = product(weight_KN, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantize_graph(source, target)
    script = Path(__file__).with_name("extremes.py")
    done = subprocess.run(
        [qemu, "-cpu", "Haswell", str(Path(sys.executable).resolve()), str(script), str(source), str(target)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["plain_product_error"] > 0, "this CPU does not saturate, so it proves nothing"
    assert measured["worst_error"] < ROUNDING


def test_the_arithmetic_of_a_cpu_without_vnni(int8_graphs: Path) -> None:
    """What such a CPU does with our very weights: pairs of products clip in int16, single products fit.

    onnxruntime's kernels put single products into the int16 lanes (see quantize.py); the weights are the
    unsigned factor, offset by 128.
    """
    graph = onnx.load(int8_graphs / "decoder_model_merged.onnx").graph
    packed = next(numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.UINT8)
    weights_NK = packed.reshape(len(packed), -1).astype(np.int32)
    activations_K = np.full(weights_NK.shape[1], 127, np.int32)
    exact_N = weights_NK @ activations_K
    products_NK = weights_NK * activations_K
    limits = np.iinfo(np.int16)
    assert products_NK.min() >= limits.min and products_NK.max() <= limits.max
    assert (np.clip(products_NK, limits.min, limits.max).sum(1) == exact_N).all()
    pairs_N = np.clip(products_NK[:, ::2] + products_NK[:, 1::2], limits.min, limits.max).sum(1)
    assert (pairs_N < exact_N).any()


def test_a_large_graph_gets_a_data_file_and_answers_the_same(
    fp32_graphs: Path, int8_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LARGE_BYTES", 1000)
    target = tmp_path / "embed_tokens_int8.onnx"
    quantize_graph(fp32_graphs / "embed_tokens.onnx", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, f"{target.name}_data"]
    assert initializer_bytes(target) == initializer_bytes(int8_graphs / "embed_tokens.onnx")
    ids = np.arange(50)[None]
    expected, found = (
        open_session(str(path)).run(None, {"input_ids": ids})[0]
        for path in (int8_graphs / "embed_tokens.onnx", target)
    )
    assert (expected == found).all()


def test_quantizing_twice_gives_the_same_bytes(fp32_graphs: Path, int8_graphs: Path, tmp_path: Path) -> None:
    quantize_graph(fp32_graphs / "vision_encoder.onnx", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (int8_graphs / "vision_encoder.onnx").read_bytes()


def test_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save_model(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(BuildError, match="holds no weights to quantize"):
        quantize_graph(tmp_path / "relu.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
