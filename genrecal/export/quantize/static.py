"""int8 weights and activations with fixed scales, as TensorRT wants them: QuantizeLinear, DequantizeLinear.

    x -> Quantize -> Dequantize -+
                                 MatMul      TensorRT makes one int8 product of it
    int8 weight -> Dequantize ---+

All is symmetric: zero points are zero. Weights have a scale an output channel; an activation has one scale
for the whole tensor, its largest absolute value over all calibration images divided by 127. Attention between
activations, norms and the patch embedding stay as they are: TensorRT takes them in float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from genrecal.export.quantize.blocks import Array
from genrecal.export.quantize.schemes import GraphScheme
from genrecal.export.quantize.taps import activations, tapped
from genrecal.export.quantize.weights import kept_higher, products
from genrecal.export.reference import Feed

LARGEST = 127


def quantize_static(source: Path, target: Path, scheme: GraphScheme, feeds: Sequence[Feed]) -> dict[str, Any]:
    """Write the float32 graph `source` to `target` with int8 products.

    Args:
        source: a float32 graph.
        target: the `.onnx` file.
        scheme: which weights stay as they are.
        feeds: inputs of the graph that activations are measured with.

    Returns:
        What was done, for the manifest.

    Raises:
        BuildError: there are no feeds, or no weights.
    """
    if not feeds:
        raise BuildError(
            "there are no images to calibrate with",
            where=source,
            fix="Name training data (--calibration), or export a run whose data is at hand",
        )
    model = onnx.load(source, load_external_data=False)
    found = products(model)
    chosen = [name for name in found if scheme.bits_of(name) is not None]
    if not chosen:
        raise BuildError("holds no weights to quantize", where=source)
    taken = activations(model)
    largest = _largest(source, sorted({taken[name] for name in chosen}), feeds)
    size = sum(map(tensor_bytes, model.graph.initializer))
    left = [tensor for tensor in model.graph.initializer if tensor.name not in chosen]
    outside = lies_outside(model)
    _replace_nodes(model, set(chosen))
    del model.graph.initializer[:]
    with written(model, target, outside=outside) as constants:
        for tensor in left:
            constants.add(tensor.name, tensor.dims, tensor.data_type, copied(tensor, source.parent))
        for value, maximum in largest.items():
            constants.add_array(f"{value}_scale", np.float32(maximum / LARGEST))
            constants.add_array(f"{value}_zero", np.int8(0))
        for name in chosen:
            _write_weight(constants, name, array_of(found[name], source.parent))
    return {
        "quantized": {"8 bits": len(chosen)},
        "kept_higher": kept_higher(scheme, found, ()),
        "calibration_images": len(feeds),
        "bytes": initializer_bytes(target),
        "source_bytes": size,
    }


def _largest(source: Path, values: Sequence[str], feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest absolute value of each activation over all feeds."""
    found = dict.fromkeys(values, 0.0)
    with tapped(source, values) as session:
        for feed in feeds:
            for name, array in zip(values, session.run(list(values), feed), strict=True):
                found[name] = max(found[name], float(np.abs(array).max(initial=0)))
    # What is always zero has no scale of its own.
    return {name: maximum or 1.0 for name, maximum in found.items()}


def _replace_nodes(model: ModelProto, chosen: set[str]) -> None:
    nodes: list[NodeProto] = []
    done: set[str] = set()

    def dequantized(value: str, code: str, **axis: int) -> None:
        names = [code, f"{value}_scale", f"{value}_zero"]
        nodes.append(
            helper.make_node("DequantizeLinear", names, [f"{value}_dq"], name=f"{value}/dequantize", **axis)
        )

    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in chosen:
            value, weight = node.input
            if value not in done:
                names = [value, f"{value}_scale", f"{value}_zero"]
                nodes.append(
                    helper.make_node("QuantizeLinear", names, [f"{value}_q"], name=f"{value}/quantize")
                )
                dequantized(value, f"{value}_q")
            if weight not in done:
                dequantized(weight, f"{weight}_Q8", axis=1)
            done |= {value, weight}
            node.input[0], node.input[1] = f"{value}_dq", f"{weight}_dq"
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write_weight(constants: Initializers, name: str, weight_KN: Array) -> None:
    inputs, outputs = weight_KN.shape
    step = max(1, initializers.PIECE_VALUES // outputs)
    pieces = range(0, inputs, step)
    maximum_N = np.max([np.abs(weight_KN[start : start + step]).max(0) for start in pieces], 0)
    scale_N = np.where(maximum_N > 0, maximum_N, 1).astype(np.float32) / np.float32(LARGEST)

    def codes() -> Iterator[bytes]:
        for start in pieces:
            yield np.rint(weight_KN[start : start + step] / scale_N).astype(np.int8).tobytes()

    constants.add(f"{name}_Q8", weight_KN.shape, TensorProto.INT8, codes())
    constants.add_array(f"{name}_scale", scale_N)
    constants.add_array(f"{name}_zero", np.zeros(outputs, np.int8))
