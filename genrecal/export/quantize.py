"""int8 graphs: 8-bit weights with a scale for every 32 of them along the input channels.

    MatMul with a constant weight  -> MatMulNBits, 8 bits; its activations stay float32
    Gather from the embedding      -> Gather from an int8 table * Gather from its scales, one a token
    everything else                -> stays float32: norms, biases, attention between activations

Why not onnxruntime's dynamic int8: it gives all activations of a matrix one scale. On a briefly trained demo
student, 500 questions, whole greedy answers equal to fp32: this 98%, dynamic int8 97%, and 92% with the 7-bit
weights that it needs on CPUs without VNNI.

Saturation: without VNNI, an x86 CPU multiplies unsigned by signed bytes and adds two neighbouring products
in int16 with saturation; 2 * 255 * 127 does not fit, hence those 7 bits. Here the kernel multiplies in
float32. tests/export/test_quantize.py runs it with extreme activations, also on an emulated CPU that has
AVX2 and no VNNI where qemu is installed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from genrecal.core.errors import BuildError

BITS = 8
BLOCK = 32
# 1: the kernel computes in float32. 4 would quantize activations to int8 per block, which is faster in
# decoding; on the demo's student it changes 5% of the whole answers to open questions, and 1 changes 3%.
ACCURACY_LEVEL = 1
# protobuf refuses 2 GB; above this the weights go to `<name>.onnx_data`.
LARGE_BYTES = 1_500_000_000


def quantize_graph(source: Path, target: Path) -> dict[str, Any]:
    """Write `source` (an fp32 graph) to `target` with int8 weights.

    Returns:
        What was done, for the manifest: the operators by count, and the fp32 initializers that stayed.

    Raises:
        BuildError: the graph holds no weight that can be quantized.
    """
    model = onnx.load(source)
    tables = _quantize_embeddings(model)
    quantizer = _matmul_nbits().MatMulNBitsQuantizer(
        model, bits=BITS, block_size=BLOCK, is_symmetric=True, accuracy_level=ACCURACY_LEVEL
    )
    quantizer.process()
    model = quantizer.model.model
    products = sum(node.op_type == "MatMulNBits" for node in model.graph.node)
    if not tables + products:
        raise BuildError("holds no weights to quantize", where=source)
    save_graph(model, target)
    return {
        "matmul_nbits": products,
        "int8_tables": tables,
        "kept_fp32": sorted(
            tensor.name
            for tensor in model.graph.initializer
            if tensor.data_type == TensorProto.FLOAT and not tensor.name.endswith("_scales")
        ),
        "bytes": initializer_bytes(target),
        "fp32_bytes": initializer_bytes(source),
    }


def scheme() -> dict[str, Any]:
    """What "int8" means in a build, for its manifest."""
    return {
        "name": "int8",
        "weights": {
            "bits": BITS,
            "range": [-128, 127],
            "symmetric": True,
            "scale": f"float32, one for each {BLOCK} input channels of each output channel",
            "operator": "com.microsoft.MatMulNBits",
        },
        "activations": f"float32 (accuracy_level {ACCURACY_LEVEL})",
        "embedding": {"bits": BITS, "range": [-127, 127], "scale": "float32, one for each token"},
        "fp32": "layer norms, biases, rotary embedding, attention between activations, softmax",
        "saturation": "none: products are float32",
    }


def initializer_bytes(graph: Path) -> int:
    """Bytes of the initializers of a graph, without reading external ones into memory."""
    model = onnx.load(graph, load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4}.get(
            tensor.data_type, 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        )
        total += int(np.prod(tensor.dims, dtype=np.int64)) * bits // 8
    return total


def save_graph(model: ModelProto, target: Path) -> None:
    """Write a graph; a large one with its weights in `<target>_data` beside it."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGE_BYTES
    onnx.save_model(
        model, target, save_as_external_data=large, location=f"{target.name}_data" if large else None
    )


def _quantize_embeddings(model: ModelProto) -> int:
    """Give every Gather from a float matrix an int8 table with one scale a row; returns how many.

    onnxruntime's own quantizer would give the whole table one scale, which rounds rare, small rows away.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes, done = [], 0
    for node in graph.node:
        tensor = initializers.get(node.input[0]) if node.op_type == "Gather" else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            nodes.append(node)
            continue
        table_VD = numpy_helper.to_array(tensor)
        scale_V1 = np.maximum(np.abs(table_VD).max(1, keepdims=True), np.finfo("f4").tiny) / np.float32(127)
        quantized_VD = np.rint(table_VD / scale_V1).astype(np.int8)
        name, ids, output = tensor.name, node.input[1], node.output[0]
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(quantized_VD, f"{name}_Q8"))
        graph.initializer.append(numpy_helper.from_array(scale_V1, f"{name}_scales"))
        nodes += [
            helper.make_node("Gather", [f"{name}_Q8", ids], [f"{output}_q8"], axis=0),
            helper.make_node("Gather", [f"{name}_scales", ids], [f"{output}_scale"], axis=0),
            helper.make_node("Cast", [f"{output}_q8"], [f"{output}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{output}_cast", f"{output}_scale"], [output]),
        ]
        done += 1
    del graph.node[:]
    graph.node.extend(nodes)
    return done


def _matmul_nbits() -> ModuleType:
    """onnxruntime's weight quantizer; importing it sets up the root logger, which is ours to set up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    matmul_nbits_quantizer.logger.setLevel(logging.WARNING)
    return matmul_nbits_quantizer
