"""The two roofs over decoding on this machine, both measured here.

    bandwidth   bytes of weights that a token reads / bytes a second that all threads read from memory
    kernel      the same operator with the same block, one row, on weights that stay in the cache

A token takes at least the longer of the two times; its share is that time over the measured one. A kernel
at its peak in the cache still waits for memory, and reading at full bandwidth leaves no time to compute, so
100% is no speed that anything reaches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# More than any cache; each thread reads its part of it.
READ_BYTES = 1 << 30
# Of a matrix in the cache, K = 1536: at 8 bits 1.5 to 6 MB, so that calls do not count and L2 or L3 holds it.
CACHED_ROWS, CACHED_WIDTH = (1024, 2048, 4096), 1536
SECONDS = 0.6
OPERATOR = "MatMulNBits"
_PRODUCT_WEIGHTS = slice(1, 4)  # inputs of the operator: weights, scales, zero points
_LOOKED_UP = ("Gather", "GatherBlockQuantized")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Kernel:
    """What decides how fast a product of quantized weights is."""

    bits: int
    block: int
    accuracy_level: int

    @property
    def name(self) -> str:
        return f"{OPERATOR} {self.bits} bits, block {self.block}, level {self.accuracy_level}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Bytes of weights that one token reads."""

    total: int
    by_kernel: dict[Kernel, int]


def reads_of_graph(path: Path) -> Reads:
    """Of a decoder graph; of tables that are looked up a token reads one row, which is not counted."""
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
    by_kernel: dict[Kernel, int] = defaultdict(int)
    read: set[str] = set()
    for node in graph.node:
        if node.op_type == OPERATOR:
            given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            kernel = Kernel(
                bits=given.get("bits", 4),
                block=given["block_size"],
                accuracy_level=given.get("accuracy_level", 0),
            )
            by_kernel[kernel] += sum(sizes.get(name, 0) for name in node.input[_PRODUCT_WEIGHTS])
        if node.op_type not in _LOOKED_UP:
            read.update(name for name in node.input if name in sizes)
    return Reads(total=sum(sizes[name] for name in read), by_kernel=dict(by_kernel))


def measure_bandwidth(threads: int) -> float:
    """Bytes a second that a sum over a large array reads, the fastest of many."""
    import torch

    torch.set_num_threads(threads)
    values = torch.zeros(READ_BYTES // 4, dtype=torch.float32)
    values += 1  # a page that was never written to is no memory yet
    return READ_BYTES / _fastest(lambda: values.sum(), 3 * SECONDS)


def measure_kernel(kernel: Kernel, threads: int) -> float:
    """Bytes of weights a second that the operator gets through at one row, in the cache."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = []
    for rows in CACHED_ROWS:
        model, size = product(kernel, rows, CACHED_WIDTH)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {"x": np.random.default_rng(0).standard_normal((1, CACHED_WIDTH), dtype=np.float32)}
        found.append(size / _fastest(lambda: session.run(None, feed), SECONDS))  # noqa: B023
    return max(found)


def product(kernel: Kernel, rows: int, width: int) -> tuple[bytes, int]:
    """A graph of one product with random weights, and the bytes of these."""
    blocks = -(-width // kernel.block)
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 256, (rows, blocks, kernel.block * kernel.bits // 8), dtype=np.uint8)
    scales = rng.random((rows, blocks), dtype=np.float32)
    node = helper.make_node(
        OPERATOR,
        ["x", "weights", "scales"],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=rows,
        bits=kernel.bits,
        block_size=kernel.block,
        accuracy_level=kernel.accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", rows])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model.SerializeToString(), weights.nbytes + scales.nbytes


def roof(reads: Reads, bandwidth: float, peaks: dict[Kernel, float]) -> dict[str, float]:
    """Tokens a second under each roof, and under the lower one.

    Args:
        reads: of a token.
        bandwidth: bytes a second.
        peaks: bytes of weights a second of each kernel.
    """
    memory = bandwidth / reads.total
    kernel = 1 / sum(size / peaks[one] for one, size in reads.by_kernel.items())
    return {"bandwidth": memory, "kernel": kernel, "lower": min(memory, kernel)}


def _bytes(tensor: TensorProto) -> int:
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4}.get(
        tensor.data_type, 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )
    return int(np.prod(tensor.dims, dtype=np.int64)) * bits // 8


def _fastest(run: Callable[[], Any], seconds: float) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best
