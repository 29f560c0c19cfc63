"""Attention in fewer nodes: the graph computes what it computed, and what looks otherwise is left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from genrecal.export.attention_nodes import simplify_attention

HEADS, KV_HEADS, SIZE, WIDTH = 4, 2, 8, 16


def decoder(layers: int = 2, *, bias: bool = True, normed: bool = False) -> ModelProto:
    """Layers of attention as torch's exporter writes them: reshapes by computed shapes, rotation in parts."""
    rng = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    tensors = {
        "zero": np.array([0]),
        "middle": np.array([SIZE // 2]),
        "end": np.array([np.iinfo(np.int64).max]),
        "last": np.array([3]),
    }

    def add(kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: object) -> str:
        names = [f"{kind}_{len(nodes)}_{place}" for place in range(outputs)]
        nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        tensors[f"{name}.weight"] = rng.standard_normal((rows, columns)).astype(np.float32) / rows**0.5
        product = add("MatMul", x, f"{name}.weight")
        if not bias:
            return product
        tensors[f"{name}.bias"] = rng.standard_normal(columns).astype(np.float32)
        return add("Add", f"{name}.bias", product)

    def parted(x: str, like: str, layer: str) -> str:
        tensors[f"{layer}.parts"] = np.array([-1, SIZE], np.int64)
        sizes = add("Concat", add("Shape", like, start=0, end=2), f"{layer}.parts", axis=0)
        return add("Reshape", x, sizes)

    def joined(x: str, layer: str) -> str:
        tensors[f"{layer}.rest"] = np.array([-1], np.int64)
        return add("Reshape", x, add("Concat", add("Shape", x, start=0, end=2), f"{layer}.rest", axis=0))

    def rotated(x: str, layer: str) -> str:
        x_BHSC = add("Transpose", parted(x, z, layer), perm=[0, 2, 1, 3])
        first = add("Slice", x_BHSC, "zero", "middle", "last")
        second = add("Slice", x_BHSC, "middle", "end", "last")
        turned = add("Concat", add("Neg", second), first, axis=-1)
        sum_BHSC = add("Add", add("Mul", x_BHSC, "cos"), add("Mul", turned, "sin"))
        return joined(add("Transpose", sum_BHSC, perm=[0, 2, 1, 3]), layer)

    z = "z"
    for number in range(layers):
        layer = f"layers.{number}"
        q = linear(z, f"{layer}.q", WIDTH, HEADS * SIZE)
        q = add("Relu", q) if normed else q
        k = linear(z, f"{layer}.k", WIDTH, KV_HEADS * SIZE)
        v = joined(parted(linear(z, f"{layer}.v", WIDTH, KV_HEADS * SIZE), z, layer), layer)
        attended = add(
            "GroupQueryAttention",
            *(rotated(q, layer), rotated(k, layer), v, "past", "past", "seen", "total"),
            domain="com.microsoft",
            outputs=3,
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
        )
        attended = joined(parted(attended, z, layer), layer)
        tensors[f"{layer}.o"] = rng.standard_normal((HEADS * SIZE, WIDTH)).astype(np.float32) / 8
        z = add("Add", z, add("MatMul", attended, f"{layer}.o"))
    given: dict[str, list[int | str]] = {"z": ["B", "S", WIDTH], "past": ["B", KV_HEADS, 0, SIZE]}
    given |= {name: ["B", 1, "S", SIZE] for name in ("cos", "sin")}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()]
    inputs += [helper.make_tensor_value_info("seen", TensorProto.INT32, ["B"])]
    inputs += [helper.make_tensor_value_info("total", TensorProto.INT32, [])]
    graph = helper.make_graph(
        nodes,
        "decoder",
        inputs,
        [helper.make_tensor_value_info(z, TensorProto.FLOAT, ["B", "S", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: ModelProto, batch: int, new: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    angles_BSC = np.tile(rng.standard_normal((batch, 1, new, SIZE // 2)), 2)
    feed = {
        "z": rng.standard_normal((batch, new, WIDTH)).astype(np.float32),
        "past": np.zeros((batch, KV_HEADS, 0, SIZE), np.float32),
        "cos": np.cos(angles_BSC).astype(np.float32),
        "sin": np.sin(angles_BSC).astype(np.float32),
        "seen": np.full(batch, new - 1, np.int32),
        "total": np.array(new, np.int32),
    }
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_output_in_fewer_nodes(bias: bool) -> None:
    model = decoder(bias=bias)
    expected = {sizes: run(model, *sizes) for sizes in ((1, 1), (1, 5), (2, 4))}
    before = len(model.graph.node)
    assert simplify_attention(model.graph, {}) == 2
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["RotaryEmbedding"] == 4 and not kinds["Transpose"] and not kinds["Neg"]
    # One table of angles for all layers; what is left of a layer is products, sums and the attention.
    assert kinds["Slice"] == 2 and len(model.graph.node) < before / 2
    for sizes, output in expected.items():
        np.testing.assert_allclose(run(model, *sizes), output, atol=1e-5)


def test_weights_may_be_names_alone() -> None:
    model = decoder()
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer if one.name.startswith("layers")}
    weights = [one for one in model.graph.initializer if one.name in shapes and len(one.dims) == 2]
    for tensor in weights:
        model.graph.initializer.remove(tensor)
    assert simplify_attention(model.graph, shapes) == 2


def test_queries_that_are_no_plain_product_are_left_alone() -> None:
    model = decoder(normed=True)
    expected = run(model, 2, 3)
    assert simplify_attention(model.graph, {}) == 0
    assert any(node.op_type == "Neg" for node in model.graph.node)
    np.testing.assert_allclose(run(model, 2, 3), expected, atol=1e-6)


def test_a_graph_without_attention_is_not_touched() -> None:
    model = decoder(layers=0)
    model.graph.node.append(helper.make_node("Identity", ["z"], ["y"]))
    before = model.SerializeToString()
    assert simplify_attention(model.graph, {}) == 0 and model.SerializeToString() == before
