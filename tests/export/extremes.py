"""Runs a graph on extreme activations; also started as a script on an emulated CPU.

python extremes.py FP32_GRAPH INT8_GRAPH    prints one JSON object
"""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import onnxruntime


def open_session(graph: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def worst_error(fp32_graph: str, int8_graph: str) -> float:
    """The largest error of the int8 graph, relative to the largest sum that it could form, over patterns of
    activations that fill every accumulator: all the largest, all the lowest, alternating, one and many rows.
    """
    fp32, int8 = open_session(fp32_graph), open_session(int8_graph)
    (given,) = fp32.get_inputs()
    channels = given.shape[1]
    alternating = np.where(np.arange(channels) % 2, 1.0, -1.0)
    worst = 0.0
    for rows, pattern in itertools.product((1, 2, 7), (np.ones(channels), -np.ones(channels), alternating)):
        x = np.tile(1000.0 * pattern, (rows, 1)).astype(np.float32)
        expected, found = (session.run(None, {given.name: x})[0] for session in (fp32, int8))
        worst = max(worst, float(np.abs(expected - found).max()) / (1000.0 * channels))
    return worst


def plain_product_error() -> int:
    """The error of onnxruntime's unsigned by signed product at full range: 0 on a CPU with VNNI."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    found = open_session(model.SerializeToString()).run(None, {"a": np.full((1, 64), 255, np.uint8)})[0]
    return int(np.abs(found - 64 * 255 * 127).max())


if __name__ == "__main__":
    print(
        json.dumps({"worst_error": worst_error(*sys.argv[1:3]), "plain_product_error": plain_product_error()})
    )
