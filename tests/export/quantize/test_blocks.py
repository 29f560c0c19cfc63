"""Numbers in blocks against ONNX Runtime: what its kernel multiplies with is what the codes say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genrecal.export.quantize.blocks import Coded, block_for, nearest, packed, values_of
from tests.export.extremes import open_session


def coded(weight_KN: np.ndarray, bits: int, block: int) -> Coded:
    pieces = list(nearest("w", weight_KN, bits, block, np.float32))
    return Coded(
        codes_NGB=np.concatenate([piece.codes_NGB for piece in pieces]),
        scales_NG=np.concatenate([piece.scales_NG for piece in pieces]),
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 100])
def test_the_kernel_reads_the_codes_as_they_are_meant(bits: int, inputs: int) -> None:
    block, outputs = 32, 24
    weight_KN = np.random.default_rng(bits).normal(size=(inputs, outputs)).astype(np.float32)
    found = coded(weight_KN, bits, block)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [
            numpy_helper.from_array(packed(found.codes_NGB, bits), "codes"),
            numpy_helper.from_array(found.scales_NG.reshape(-1), "scales"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    kernel_KN = open_session(model.SerializeToString()).run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]
    assert np.allclose(kernel_KN, values_of(found, bits, inputs), atol=1e-6)
    # Half a step, of a range that ends one step early on one side.
    steps_NG = np.abs(found.scales_NG)
    limit_NK = np.repeat(steps_NG, block, 1)[:, :inputs]
    assert (limit_NK * 1.001 >= np.abs(kernel_KN - weight_KN).T).all()
    assert (limit_NK * 0.501 >= np.abs(kernel_KN - weight_KN).T).mean() > 0.9


def test_a_block_of_zeros_is_zero() -> None:
    weight_KN = np.zeros((64, 3), np.float32)
    weight_KN[32:, 1] = 7.0
    assert np.array_equal(values_of(coded(weight_KN, 4, 32), 4, 64), weight_KN)


@pytest.mark.parametrize(
    ("inputs", "block"), [(1536, 64), (160, 32), (4864, 64), (8960, 64), (100, 32), (96, 32)]
)
def test_a_block_divides_the_channels_where_one_can(inputs: int, block: int) -> None:
    assert block_for(inputs, 64, 32) == block
