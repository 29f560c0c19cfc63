"""What each target can run: graphs of the exporter, graphs that must be refused, and the tables."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import cli
from edge.build import DECODER, EMBED_TOKENS, VISION_ENCODER
from edge.device import CPU_BUILDS_FOR_GPU
from genrecal.core.errors import BuildError, ConfigError
from genrecal.export import kernels, linter
from genrecal.export.build import export_run
from genrecal.export.families import FAMILIES
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize.schemes import scheme_of
from genrecal.export.quantize.weights import quantize_weights
from genrecal.export.value_types import UNKNOWN, typed_nodes
from tests.edge.conftest import write_build

CONTRIB = "com.microsoft"


def reasons(path: Path, target: str, graph: str = DECODER) -> list[linter.Finding]:
    return linter.lint_graph(path, graph, target)[1]


def one_node(folder: Path, operator: str, feeds: dict[str, Any], domain: str = "", **attributes: Any) -> Path:
    """A graph of one node; `feeds`: input -> its type, or an array that is a constant."""
    constants = [
        numpy_helper.from_array(value, name) for name, value in feeds.items() if isinstance(value, np.ndarray)
    ]
    inputs = [
        helper.make_tensor_value_info(name, value, None)
        for name, value in feeds.items()
        if not isinstance(value, np.ndarray)
    ]
    node = helper.make_node(operator, list(feeds), ["Y"], "the_node", domain=domain, **attributes)
    graph = helper.make_graph([node], "graph", inputs, [onnx.ValueInfoProto(name="Y")], constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)]
    path = folder / "graph.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def nbits(folder: Path, bits: int, block: int, dtype: Any = np.float16) -> Path:
    K, N = 2 * block, 8
    weight = np.zeros((N, 2, block * bits // 8), np.uint8)
    feeds = {
        "A": helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
        "B": weight,
        "scales": np.ones(2 * N, dtype),
    }
    return one_node(folder, "MatMulNBits", feeds, CONTRIB, K=K, N=N, bits=bits, block_size=block)


@pytest.fixture(scope="module", params=(*FAMILIES, "internvl_llama"))
def family_graphs(
    request: pytest.FixtureRequest, family_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Path]]:
    """precision -> graph -> file."""
    folder = tmp_path_factory.mktemp("lint") / request.param
    student = family_folders[request.param]
    return {
        precision: export_graphs(student, folder / precision, precision=precision)
        for precision in ("fp32", "fp16")
    }


def test_every_family_runs_where_it_is_made_for(family_graphs: dict[str, dict[str, Path]]) -> None:
    """All types are known; fp16 runs on a Jetson whole, fp32 but for attention of the decoder."""
    for precision, graphs in family_graphs.items():
        for graph, path in graphs.items():
            for typed in typed_nodes(onnx.load(path)):
                assert UNKNOWN not in typed.values, typed.node.name
            assert not reasons(path, "cpu", graph)
            refused = {finding.operator for finding in reasons(path, "jetson", graph)}
            wrong = {f"{CONTRIB}::GroupQueryAttention"} if (precision, graph) == ("fp32", DECODER) else set()
            assert refused == wrong
        vision = reasons(graphs[VISION_ENCODER], "jetson-tensorrt", VISION_ENCODER)
        assert {finding.operator for finding in vision} == {f"{CONTRIB}::MultiHeadAttention"}


def test_types_are_those_that_onnx_finds(fp32_graphs: Path) -> None:
    """Shape inference knows fewer of them; where it knows one, it is the same."""
    model = onnx.load(fp32_graphs / f"{DECODER}.onnx")
    ours = {
        name: found
        for typed in typed_nodes(model)
        for name, found in zip(filter(None, typed.node.output), typed.outputs, strict=True)
    }
    inferred = {
        entry.name: TensorProto.DataType.Name(entry.type.tensor_type.elem_type).lower()
        for entry in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert 100 < len(inferred) < len(ours)
    assert {name: ours[name] for name in inferred} == inferred


@pytest.mark.parametrize(
    ("operator", "feeds", "domain", "why"),
    [
        ("DynamicQuantizeLinear", {"x": TensorProto.FLOAT}, "", "quantizes for the CPU"),
        ("MatMulInteger", {"A": TensorProto.INT8, "B": TensorProto.INT8}, "", "quantizes for the CPU"),
        ("Acos", {"x": TensorProto.FLOAT}, "", "cuda has no kernel for it; on jetson the CPU"),
        (
            "Pad",
            {"x": TensorProto.UINT8, "pads": np.zeros(2, np.int64)},
            "",
            "cuda's kernel takes bool double",
        ),
    ],
)
def test_a_gpu_is_not_left_for_the_cpu(
    tmp_path: Path, operator: str, feeds: dict[str, Any], domain: str, why: str
) -> None:
    """The CPU has all of them."""
    path = one_node(tmp_path, operator, feeds, domain)
    if operator == "DynamicQuantizeLinear":
        model = onnx.load(path)
        model.graph.node[0].output.extend(["scale", "zero"])
        onnx.save_model(model, path)
    assert reasons(path, "cpu") == []
    (finding,) = reasons(path, "jetson")
    assert (finding.graph, finding.node, finding.operator) == (DECODER, "the_node", operator)
    assert why in finding.why
    assert reasons(path, "jetson-tensorrt", VISION_ENCODER)


def test_qlinear_operators_are_refused_by_their_name(tmp_path: Path) -> None:
    scale, zero = np.ones((), np.float32), np.zeros((), np.int8)
    feeds = {"a": TensorProto.INT8, "as": scale, "az": zero, "b": TensorProto.INT8, "bs": scale, "bz": zero}
    path = one_node(tmp_path, "QLinearMatMul", {**feeds, "ys": scale, "yz": zero})
    assert reasons(path, "cpu") == [] and "quantizes for the CPU" in reasons(path, "jetson")[0].why


def test_shapes_may_go_to_the_cpu_and_large_tables_may_not(tmp_path: Path) -> None:
    """CUDA has no ReduceProd of int64."""
    axes = np.zeros(1, np.int64)
    assert reasons(one_node(tmp_path, "ReduceProd", {"x": TensorProto.INT64, "axes": axes}), "jetson") == []
    table = np.zeros(linter.SHAPE_VALUES + 1, np.int64)
    (finding,) = reasons(one_node(tmp_path, "ReduceProd", {"x": table, "axes": axes}), "jetson")
    assert "int32" in finding.why and "int64" in finding.why


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 32), (4, 128), (8, 16), (2, 32), (4, 512)])
def test_bits_and_blocks_are_those_that_the_cpu_has(tmp_path: Path, bits: int, block: int) -> None:
    """What passes is loaded by ONNX Runtime; the table holds what all its versions load."""
    path = nbits(tmp_path, bits, block)
    if not reasons(path, "cpu"):
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert bool(reasons(path, "cpu")) == ((bits, block) in {(2, 32), (4, 512)})
    assert bool(reasons(path, "jetson")) == (bits == 2 or block not in (32, 128))


def test_tensorrt_takes_symmetric_quantization_alone(tmp_path: Path) -> None:
    scale = np.ones((), np.float32)
    for zero, refused in ((np.int8(0), False), (np.int8(3), True)):
        feeds = {"x": TensorProto.FLOAT, "scale": scale, "zero": np.array(zero)}
        found = reasons(one_node(tmp_path, "QuantizeLinear", feeds), "jetson-tensorrt", VISION_ENCODER)
        assert bool(found) is refused
    assert "symmetrically" in found[0].why


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_builds_for_the_cpu_are_not_for_a_gpu(
    fp32_graphs: Path, tmp_path: Path, precision: str
) -> None:
    refused = {}
    for graph, scheme in scheme_of(precision, "cpu").items():
        quantize_weights(fp32_graphs / f"{graph}.onnx", tmp_path / f"{graph}.onnx", scheme)
        assert reasons(tmp_path / f"{graph}.onnx", "cpu", graph) == []
        found = reasons(tmp_path / f"{graph}.onnx", "jetson", graph)
        refused[graph] = {finding.operator for finding in found}
    assert refused == {
        VISION_ENCODER: {f"{CONTRIB}::DynamicQuantizeMatMul"},
        EMBED_TOKENS: set(),
        DECODER: {f"{CONTRIB}::GroupQueryAttention"},
    }
    assert precision not in CPU_BUILDS_FOR_GPU


def test_the_runtime_opens_on_a_gpu_what_the_linter_lets_pass(
    family_graphs: dict[str, dict[str, Path]],
) -> None:
    """`edge/device.py::CPU_BUILDS_FOR_GPU` says the same without graphs at hand."""
    for precision, graphs in family_graphs.items():
        runs = not any(reasons(path, "jetson", graph) for graph, path in graphs.items())
        assert runs == (precision in CPU_BUILDS_FOR_GPU)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_fused_operators_have_types_too(tmp_path: Path, dtype: int) -> None:
    """Optional outputs may be missing; those after ONNX Runtime's own operators are known."""
    path = one_node(tmp_path, "SkipSimplifiedLayerNormalization", dict.fromkeys("xsg", dtype), CONTRIB)
    model = onnx.load(path)
    model.graph.node[0].output.extend(["", "", "sum"])
    onnx.save_model(model, path)
    (typed,) = typed_nodes(model)
    assert typed.outputs == (TensorProto.DataType.Name(dtype).lower(),) * 2
    assert reasons(path, "cpu") == reasons(path, "jetson") == []
    (finding,) = reasons(path, "jetson-tensorrt", VISION_ENCODER)
    assert "ONNX parser" in finding.why and finding.node == "the_node"
    ids, scales = np.zeros((2, 3), np.int64), np.ones((8, 1), np.float16)
    feeds = {"data": np.zeros((8, 16), np.uint8), "ids": ids, "scales": scales}
    path = one_node(tmp_path, "GatherBlockQuantized", feeds, CONTRIB, bits=8, block_size=16)
    assert next(typed_nodes(onnx.load(path))).outputs == ("float16",)


def test_nodes_of_a_branch_are_read(tmp_path: Path) -> None:
    """Also those whose values come from the graph around it."""
    inner = helper.make_node("Acos", ["x"], ["inner"], "inside")
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([inner], "branch", [], [value])
    path = one_node(tmp_path, "If", {"condition": TensorProto.BOOL}, then_branch=branch, else_branch=branch)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    onnx.save_model(model, path)
    assert reasons(path, "cpu") == []
    assert [finding.node for finding in reasons(path, "jetson")] == ["inside", "inside"]


def test_external_data_is_not_read(fp32_graphs: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32_graphs / f"{DECODER}.onnx")
    path = tmp_path / "graph.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    assert reasons(path, "cpu") == []


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(BuildError, match="is no ONNX graph"):
        linter.lint_graph(tmp_path / "graph.onnx", DECODER, "cpu")
    with pytest.raises(ConfigError, match="no target is called 'tpu'"):
        linter.require_placed({}, "tpu", where=tmp_path)
    path = one_node(tmp_path, "Erf", {"x": TensorProto.FLOAT})
    model = onnx.load(path)
    model.opset_import[0].version = 13
    onnx.save_model(model, path)
    with pytest.raises(BuildError, match="is of opset 13"):
        linter.lint_graph(path, DECODER, "cpu")
    unknown = one_node(tmp_path, "Thing", {"x": TensorProto.FLOAT}, "somebody")
    assert "type" in reasons(unknown, "cpu")[0].why


def test_the_command_names_graph_node_operator_and_reason(student_folder: Path, tmp_path: Path) -> None:
    build = write_build(student_folder, tmp_path / "build", "qwen2_vl")
    run = CliRunner()
    assert run.invoke(cli.app, ["lint", str(build)]).exit_code == 0
    result = run.invoke(cli.app, ["lint", str(build), "--target", "jetson"])
    assert result.exit_code == BuildError.exit_code
    for part in (
        DECODER,
        "GroupQueryAttention'",
        f"{CONTRIB}::GroupQueryAttention(float",
        "bfloat16 float16",
    ):
        assert part in " ".join(result.output.split())
    shutil.rmtree(build / "onnx")
    assert run.invoke(cli.app, ["lint", str(build)]).exit_code == BuildError.exit_code


def test_an_export_for_a_target_that_cannot_run_it_leaves_no_build(
    student_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=r"nodes cannot run on jetson; the first is '.*GroupQueryAttention"):
        export_run(
            student_folder,
            tmp_path / "build",
            precision="fp32",
            target="jetson",
            parity_prompts=[("What is a circle?",)],
        )
    assert not list(tmp_path.iterdir())


def test_the_cpu_table_is_what_this_onnxruntime_has() -> None:
    """Each row is in the registry of the installed version, which is the table's or a newer one."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    there: dict[tuple[str, str], list[Any]] = {}
    for kernel in get_all_opkernel_def():
        there.setdefault((kernel.domain or "ai.onnx", kernel.op_name), []).append(kernel)
    table = kernels.tables()["cpu"]
    checked = 0
    for domain in ("ai.onnx", CONTRIB):
        for operator, rows in table[domain].items():
            for first, _, types in rows:
                found = [
                    entry.type_constraints
                    for entry in there[domain, operator]
                    if entry.version_range[0] <= first <= entry.version_range[1]
                ]
                for parameter, names in types.items():
                    known = {name for entry in found for name in entry.get(parameter, ())}
                    assert {f"tensor({name})" for name in names.split()} <= known, (operator, parameter)
                    checked += 1
    assert checked > 400


def test_the_tables_name_their_sources() -> None:
    for name, table in kernels.tables().items():
        assert table["source"] and table["ai.onnx"], name
