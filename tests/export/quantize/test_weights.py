"""Weights in 8 and 4 bits: size, error, what the manifest says of them, and that no CPU saturates."""

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

from edge.build import DECODER, EMBED_TOKENS, GRAPHS, VISION_ENCODER
from genrecal.core.errors import BuildError
from genrecal.export import initializers
from genrecal.export.initializers import initializer_bytes
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize.schemes import described, files_of, scheme_of
from genrecal.export.quantize.weights import quantize_weights
from tests.export import extremes
from tests.export.extremes import open_session, worst_error

# An 8-bit weight is off by at most 1/255 of its block's largest and an 8-bit activation by 1/254 of its own;
# a 7-bit weight by 1/128 of its channel's largest.
ROUNDING = {DECODER: 2 / 254, VISION_ENCODER: 1 / 128 + 1 / 254}
CPU = {precision: scheme_of(precision, "cpu") for precision in ("int8", "int4")}


@pytest.fixture(scope="module", params=["int8", "int4"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def graphs(precision: str, fp32_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(precision)
    for name, scheme in CPU[precision].items():
        quantize_weights(fp32_graphs / f"{name}.onnx", folder / f"{name}.onnx", scheme)
    return folder


def test_every_matrix_is_quantized_but_for_what_the_scheme_keeps(precision: str, graphs: Path) -> None:
    """Stored as it is: the patch embedding alone, which the manifest names."""
    for name in GRAPHS:
        graph = onnx.load(graphs / f"{name}.onnx").graph
        matrices = [
            tensor.name
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
            and sum(size > 1 for size in tensor.dims) > 1
            and not tensor.name.endswith("_scales")
        ]
        assert all("patch_embed" in matrix for matrix in matrices), name
        assert bool(matrices) == (name == VISION_ENCODER)


def test_the_manifest_describes_the_operators_that_are_there(precision: str, graphs: Path) -> None:
    said = described(CPU[precision][DECODER])
    graph = onnx.load(graphs / f"{DECODER}.onnx").graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 3 * 7 + 1  # seven matrices a layer and the head
    for node in nodes:
        settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        head = "embed_tokens" in node.input[1]
        assert settings["bits"] == (8 if head else said["bits"])
        assert said["smallest_block"] <= settings["block_size"] <= said["block"]
        assert settings["K"] % settings["block_size"] == 0
        assert settings["accuracy_level"] == said["accuracy_level"] == 4
        assert f"{node.domain}.{node.op_type}" == said["operator"]
        assert len(node.input) == 3  # no zero points: symmetric
    (rule,) = said.get("higher", [None])
    assert (rule is None) == (precision == "int8")
    assert rule is None or rule["bits"] == 8


def test_vision_weights_have_7_bits_and_a_scale_a_channel(precision: str, graphs: Path) -> None:
    said = described(CPU[precision][VISION_ENCODER])
    graph = onnx.load(graphs / f"{VISION_ENCODER}.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "DynamicQuantizeMatMul"]
    assert nodes and not any(node.op_type == "MatMulNBits" for node in graph.node)
    for node in nodes:
        _, weight, scales = node.input
        low, high = said["range"]
        assert f"{node.domain}.{node.op_type}" == said["operator"]
        assert stored[weight].dtype == np.int8 and stored[scales].shape == stored[weight].shape[1:]
        assert low <= stored[weight].min() and stored[weight].max() <= high
        assert (np.abs(stored[weight]).max(0) == high).all()  # the whole range is used in every channel


def test_language_weights_take_at_most_055_and_035_of_float16(precision: str, graphs: Path) -> None:
    """Of the tiny student, half of whose weights are the embedding and the head, int4 saves less."""
    shares = {"int8": 0.55, "int4": 0.42}
    sizes = [onnx.load(graphs / f"{name}.onnx").graph.initializer for name in (EMBED_TOKENS, DECODER)]
    matrices = [
        tensor for of_graph in sizes for tensor in of_graph if "_Q" in tensor.name or "_scales" in tensor.name
    ]
    packed = sum(map(initializers.tensor_bytes, matrices))
    fp16 = sum(
        2 * int(np.prod(tensor.dims)) * (2 if tensor.name.endswith("_Q4") else 1)
        for tensor in matrices
        if "_Q" in tensor.name
    )
    assert packed <= shares[precision] * fp16


def test_the_embedding_is_rounded_row_by_row(fp32_graphs: Path, graphs: Path) -> None:
    """A small row keeps its precision beside a large one."""
    ids = np.arange(200)[None]
    expected, found = (
        open_session(str(folder / "embed_tokens.onnx")).run(None, {"input_ids": ids})[0][0]
        for folder in (fp32_graphs, graphs)
    )
    largest = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(expected - found) <= largest / 254 * 1.001).all()
    assert np.abs(expected - found).max() > 0


def test_vision_features_stay_close(fp32_graphs: Path, graphs: Path) -> None:
    grid = np.array([[1, 10, 8], [1, 4, 6]])
    pixels = np.random.default_rng(0).normal(size=(104, 384)).astype(np.float32)
    expected, found = (
        open_session(str(folder / "vision_encoder.onnx")).run(
            None, {"pixel_values": pixels, "image_grid_thw": grid}
        )[0]
        for folder in (fp32_graphs, graphs)
    )
    assert np.linalg.norm(expected - found) < 0.05 * np.linalg.norm(expected)


def test_what_is_kept_is_float16_and_named(fp32_graphs: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.1.mlp.up_proj.weight/Transpose_1_0"
    source, target = fp32_graphs / f"{DECODER}.onnx", tmp_path / "kept.onnx"
    found = quantize_weights(source, target, CPU["int4"][DECODER], keep=[name])
    assert found["kept_higher"][name]["stored"] == "float16"
    assert "head" in next(entry["why"] for kept, entry in found["kept_higher"].items() if kept != name)
    stored = next(tensor for tensor in onnx.load(target).graph.initializer if tensor.name == name)
    assert stored.data_type == TensorProto.FLOAT16
    open_session(str(target))
    with pytest.raises(BuildError, match="no weight of it is called 'wrong'"):
        quantize_weights(source, target, CPU["int4"][DECODER], keep=["wrong"])


def test_float16_activations_have_float16_scales(student_folder: Path, tmp_path: Path) -> None:
    """As a Jetson computes: no operator quantizes activations."""
    (source,) = export_graphs(student_folder, tmp_path, precision="fp16", only=[DECODER]).values()
    for precision in ("int8", "int4"):
        target = tmp_path / f"{precision}.onnx"
        quantize_weights(source, target, scheme_of(precision, "jetson")[DECODER])
        model = onnx.load(target)
        operators = {node.op_type for node in model.graph.node}
        assert "MatMulNBits" in operators and "GroupQueryAttention" in operators
        assert not operators & {"DynamicQuantizeLinear", "MatMulInteger"}
        types = {entry.data_type for entry in model.graph.initializer if entry.name.endswith("_scales")}
        assert types == {TensorProto.FLOAT16}
        open_session(str(target))


def test_files_are_named_as_the_community_does() -> None:
    assert set(files_of(CPU["int4"]).values()) == {
        "onnx/vision_encoder_int8.onnx",
        "onnx/embed_tokens_int8.onnx",
        "onnx/decoder_model_merged_q4.onnx",
    }
    assert files_of(scheme_of("int4", "jetson"))[DECODER] == "onnx/decoder_model_merged_q4f16.onnx"
    assert files_of(scheme_of("int8", "jetson"))[VISION_ENCODER] == "onnx/vision_encoder_fp16.onnx"


@pytest.mark.parametrize(("precision", "target"), [("int8", "cuda"), ("int3", "cpu")])
def test_what_nobody_offers_is_refused(precision: str, target: str) -> None:
    with pytest.raises(BuildError, match=r"unknown (target 'cuda'|precision 'int3')\. Known: "):
        scheme_of(precision, target)


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


@pytest.mark.parametrize("graph", ROUNDING)
@pytest.mark.parametrize("weight_KN", EXTREMES.values(), ids=EXTREMES)
def test_extreme_activations_do_not_saturate_here(weight_KN: np.ndarray, graph: str, tmp_path: Path) -> None:
    source, target = product(weight_KN, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantize_weights(source, target, CPU["int8"][graph])
    assert worst_error(str(source), str(target)) < ROUNDING[graph]


@pytest.mark.parametrize("graph", ROUNDING)
@pytest.mark.parametrize("weight_KN", EXTREMES.values(), ids=EXTREMES)
def test_extreme_activations_do_not_saturate_on_a_cpu_without_vnni(
    weight_KN: np.ndarray, graph: str, tmp_path: Path
) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user) to emulate an x86 CPU that has AVX2 and no VNNI")
    source, target = product(weight_KN, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantize_weights(source, target, CPU["int8"][graph])
    script = Path(extremes.__file__)
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
    assert measured["worst_error"] < ROUNDING[graph]


def test_a_graph_with_weights_beside_it_is_quantized_piece_by_piece(
    student_folder: Path, fp32_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large ones are; the numbers are the same."""
    monkeypatch.setattr(initializers, "INLINE_BYTES", 0)
    monkeypatch.setattr(initializers, "ALIGNMENT", 64)
    monkeypatch.setattr(initializers, "PIECE_VALUES", 1000)
    export_graphs(student_folder, tmp_path)
    for name, scheme in CPU["int4"].items():
        quantize_weights(tmp_path / f"{name}.onnx", tmp_path / f"{name}_out.onnx", scheme)
        assert (tmp_path / f"{name}_out.onnx_data").stat().st_size > 1000
        quantize_weights(fp32_graphs / f"{name}.onnx", tmp_path / "whole.onnx", scheme)
        assert initializer_bytes(tmp_path / f"{name}_out.onnx") == initializer_bytes(tmp_path / "whole.onnx")
        whole, beside = (
            {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
            for path in (tmp_path / "whole.onnx", tmp_path / f"{name}_out.onnx")
        )
        assert whole.keys() == beside.keys()
        assert all(np.array_equal(whole[key], beside[key]) for key in whole)


def test_quantizing_twice_gives_the_same_bytes(
    precision: str, fp32_graphs: Path, graphs: Path, tmp_path: Path
) -> None:
    scheme = CPU[precision][DECODER]
    quantize_weights(fp32_graphs / f"{DECODER}.onnx", tmp_path / "again.onnx", scheme)
    assert (tmp_path / "again.onnx").read_bytes() == (graphs / f"{DECODER}.onnx").read_bytes()


def test_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save_model(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(BuildError, match="holds no weights to quantize"):
        quantize_weights(tmp_path / "relu.onnx", tmp_path / "out.onnx", CPU["int8"][DECODER])
    assert not (tmp_path / "out.onnx").exists()
