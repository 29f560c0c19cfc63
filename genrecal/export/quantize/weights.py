"""Weights of a finished graph in fewer bits; the graph goes from disk to disk, weight by weight.

MatMul with a constant weight  -> MatMulNBits, or DynamicQuantizeMatMul
Gather from the embedding      -> Gather from an int8 table * Gather from its scales, one a token
what is kept in float16        -> float16 * in the graph's own type, by a Cast
everything else                -> as it is
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from genrecal.core.errors import BuildError
from genrecal.export import initializers
from genrecal.export.initializers import (
    Initializers,
    array_of,
    copied,
    initializer_bytes,
    lies_outside,
    tensor_bytes,
    written,
)
from genrecal.export.quantize.blocks import Array, Rounding, block_for, nearest, packed
from genrecal.export.quantize.schemes import SMALLEST_BLOCK, Blocks, Dynamic, GraphScheme, Rows

CONTRIB = "com.microsoft"
FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def quantize_weights(
    source: Path,
    target: Path,
    scheme: GraphScheme,
    *,
    rounding: Rounding = nearest,
    keep: Collection[str] = (),
) -> dict[str, Any]:
    """Write the graph `source` to `target` as the scheme has it.

    Args:
        source: a graph in the type that the scheme computes in.
        target: the `.onnx` file.
        scheme: with `Blocks`, `Dynamic` or `Rows`.
        rounding: of the weights in blocks of fewer than 8 bits; 8 bits are rounded to the nearest.
        keep: names of weights that are stored in float16.

    Returns:
        What was done, for the manifest.

    Raises:
        BuildError: the graph holds no weight that can be quantized, or not one that is to be kept.
    """
    model = onnx.load(source, load_external_data=False)
    found = tables(model) if isinstance(scheme.weights, Rows) else products(model)
    if missing := sorted(set(keep) - set(found)):
        raise BuildError(f"no weight of it is called '{missing[0]}'", where=source)
    chosen = {name: scheme.bits_of(name) for name in found if name not in keep}
    chosen = {name: bits for name, bits in chosen.items() if bits is not None}
    if not chosen and not keep:
        raise BuildError("holds no weights to quantize", where=source)
    rewritten = {name: found[name] for name in found if name in chosen or name in keep}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    outside, folder = lies_outside(model), source.parent
    _replace_nodes(model, scheme, tensors, chosen, keep)
    left = [tensor for tensor in model.graph.initializer if tensor.name not in rewritten]
    del model.graph.initializer[:]
    with written(model, target, outside=outside) as constants:
        for tensor in left:
            constants.add(tensor.name, tensor.dims, tensor.data_type, copied(tensor, folder))
        for name in rewritten:
            values = array_of(tensors[name], folder)
            if name in keep:
                _write_float16(constants, name, values)
            elif isinstance(scheme.weights, Blocks):
                method = rounding if chosen[name] < 8 else nearest
                _write_blocks(constants, name, values, chosen[name], scheme.weights.block, method)
            elif isinstance(scheme.weights, Dynamic):
                _write_columns(constants, name, values, chosen[name])
            else:
                _write_rows(constants, name, values)
    return {
        "quantized": dict(sorted(Counter(f"{bits} bits" for bits in chosen.values()).items())),
        "kept_higher": kept_higher(scheme, found, keep),
        "bytes": initializer_bytes(target),
        "source_bytes": sum(map(tensor_bytes, tensors.values())),
    }


def products(model: ModelProto) -> dict[str, TensorProto]:
    """The weights of matrix products by their names, in the order of the graph."""
    return _constants(model, "MatMul", 1)


def tables(model: ModelProto) -> dict[str, TensorProto]:
    """The float matrices that rows are taken from."""
    return _constants(model, "Gather", 0)


def _constants(model: ModelProto, operator: str, place: int) -> dict[str, TensorProto]:
    known = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type in FLOATS and len(tensor.dims) == 2
    }
    readers = Counter(name for node in model.graph.node for name in node.input)
    nodes = [node for node in model.graph.node if node.op_type == operator and not node.domain]
    read = Counter(node.input[place] for node in nodes)
    # What others read as well stays for them.
    return {name: known[name] for name in read if name in known and readers[name] == read[name]}


def stored_block(scheme: GraphScheme, inputs: int) -> int:
    """The block of a weight with so many input channels."""
    assert isinstance(scheme.weights, Blocks)
    return block_for(inputs, scheme.weights.block, SMALLEST_BLOCK)


def _replace_nodes(
    model: ModelProto,
    scheme: GraphScheme,
    tensors: dict[str, TensorProto],
    chosen: dict[str, int],
    keep: Collection[str],
) -> None:
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        name = None if place is None or node.domain else node.input[place]
        if name in keep:
            assert place is not None
            wide = f"{name}_wide"
            if not any(wide in earlier.output for earlier in nodes):
                cast = helper.make_node("Cast", [name], [wide], to=tensors[name].data_type)
                nodes.append(cast)
            node.input[place] = wide
            nodes.append(node)
        elif name in chosen:
            nodes += _quantized(node, scheme, tensors[name], chosen[name])
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if not any(entry.domain == CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _quantized(node: NodeProto, scheme: GraphScheme, tensor: TensorProto, bits: int) -> list[NodeProto]:
    name, output = tensor.name, node.output[0]
    if isinstance(scheme.weights, Blocks):
        inputs, outputs = tensor.dims
        return [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}_Q{bits}", f"{name}_scales"],
                [output],
                name=node.name,
                domain=CONTRIB,
                K=inputs,
                N=outputs,
                bits=bits,
                block_size=stored_block(scheme, inputs),
                accuracy_level=scheme.weights.accuracy_level,
            )
        ]
    if isinstance(scheme.weights, Dynamic):
        inputs = [node.input[0], f"{name}_Q{bits}", f"{name}_scales"]
        return [
            helper.make_node("DynamicQuantizeMatMul", inputs, [output], name=node.name, domain=CONTRIB),
        ]
    ids, wide = node.input[1], tensor.data_type
    return [
        helper.make_node("Gather", [f"{name}_Q{bits}", ids], [f"{output}_q"], name=f"{node.name}_q", axis=0),
        helper.make_node("Gather", [f"{name}_scales", ids], [f"{output}_scale"], name=f"{node.name}_s"),
        helper.make_node("Cast", [f"{output}_q"], [f"{output}_cast"], name=f"{node.name}_cast", to=wide),
        helper.make_node("Mul", [f"{output}_cast", f"{output}_scale"], [output], name=f"{node.name}_mul"),
    ]


def _write_blocks(
    constants: Initializers, name: str, weight_KN: Array, bits: int, block: int, rounding: Rounding
) -> None:
    inputs, outputs = weight_KN.shape
    block = block_for(inputs, block, SMALLEST_BLOCK)
    scales: list[Array] = []

    def pieces() -> Iterator[bytes]:
        for coded in rounding(name, weight_KN, bits, block, weight_KN.dtype.type):
            scales.append(coded.scales_NG)
            yield packed(coded.codes_NGB, bits).tobytes()

    blocks = -(-inputs // block)
    shape = (outputs, blocks, block * bits // 8)
    constants.add(f"{name}_Q{bits}", shape, TensorProto.UINT8, pieces())
    constants.add_array(f"{name}_scales", np.concatenate(scales).reshape(-1))


def _write_columns(constants: Initializers, name: str, weight_KN: Array, bits: int) -> None:
    step = max(1, initializers.PIECE_VALUES // weight_KN.shape[1])
    starts = range(0, len(weight_KN), step)
    largest_N = np.max([np.abs(weight_KN[start : start + step]).max(0) for start in starts], 0)
    scale_N = largest_N.astype(np.float32) / np.float32(1 << (bits - 1))
    inverse_N = np.divide(1, scale_N, out=np.zeros_like(scale_N), where=scale_N != 0)
    pieces = (
        np.rint(weight_KN[start : start + step].astype(np.float32) * inverse_N).astype(np.int8).tobytes()
        for start in starts
    )
    constants.add(f"{name}_Q{bits}", weight_KN.shape, TensorProto.INT8, pieces)
    constants.add_array(f"{name}_scales", scale_N)


def _write_rows(constants: Initializers, name: str, table_VD: Array) -> None:
    """onnxruntime's own quantizer would give the whole table one scale, which rounds small rows away."""
    scales: list[Array] = []

    def pieces() -> Iterator[bytes]:
        step = max(1, initializers.PIECE_VALUES // table_VD.shape[1])
        for start in range(0, len(table_VD), step):
            rows_VD = table_VD[start : start + step].astype(np.float32)
            scale_V1 = np.abs(rows_VD).max(1, keepdims=True) / np.float32(127)
            inverse_V1 = np.divide(1, scale_V1, out=np.zeros_like(scale_V1), where=scale_V1 != 0)
            scales.append(scale_V1.astype(table_VD.dtype))
            yield np.rint(rows_VD * inverse_V1).astype(np.int8).tobytes()

    constants.add(f"{name}_Q8", table_VD.shape, TensorProto.INT8, pieces())
    constants.add_array(f"{name}_scales", np.concatenate(scales))


def _write_float16(constants: Initializers, name: str, values: Array) -> None:
    rows = max(1, initializers.PIECE_VALUES // max(1, prod(values.shape[1:])))
    pieces = (
        np.ascontiguousarray(values[start : start + rows], np.float16).tobytes()
        for start in range(0, len(values), rows)
    )
    constants.add(name, values.shape, TensorProto.FLOAT16, pieces)


def kept_higher(
    scheme: GraphScheme, found: dict[str, TensorProto], keep: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Name -> in what it is stored and why, of those that have more bits than their graph's."""
    kept: dict[str, dict[str, Any]] = {}
    for name, tensor in found.items():
        rule = scheme.rule_of(name)
        if name in keep:
            kept[name] = {"stored": "float16", "why": "kept on request (--keep-fp16)"}
        elif rule is not None:
            own = FLOATS[tensor.data_type].__name__
            kept[name] = {"stored": own if rule.bits is None else f"{rule.bits} bits", "why": rule.why}
    return kept
