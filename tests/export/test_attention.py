"""Both operators in torch against ONNX Runtime's own, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from genrecal.core.errors import ModelError
from genrecal.export.attention import GroupQueryAttention, GroupQueryCache, group_query_attention
from genrecal.export.vision_attention import FUSED, PARTS, MultiHeadAttention, attend

HEADS, KV_HEADS, SIZE = 4, 2, 8


def run_node(kind: str, inputs: list[torch.Tensor], outputs: int, **attributes: Any) -> list[np.ndarray]:
    """One node of com.microsoft in ONNX Runtime."""
    names = [f"in{place}" for place in range(len(inputs))]
    given = [f"out{place}" for place in range(outputs)]
    types = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32}
    graph = helper.make_graph(
        [helper.make_node(kind, names, given, domain="com.microsoft", **attributes)],
        kind,
        [
            helper.make_tensor_value_info(name, types[value.dtype], list(value.shape))
            for name, value in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in given],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


@pytest.mark.parametrize(
    ("new", "places", "lengths", "total"),
    [
        (6, 0, (6,), 6),
        (6, 0, (6, 3), 6),  # the second row is padded
        (1, 6, (7, 4), 7),  # and its padding overwritten
        (4, 5, (9,), 9),
        (6, 20, (6, 3), 6),  # into a buffer
        (1, 20, (7, 4), 7),
    ],
)
def test_group_query_attention(new: int, places: int, lengths: tuple[int, ...], total: int) -> None:
    generator, batch = torch.Generator().manual_seed(0), len(lengths)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = [
        draw(batch, new, HEADS * SIZE),
        draw(batch, new, KV_HEADS * SIZE),
        draw(batch, new, KV_HEADS * SIZE),
        draw(batch, KV_HEADS, places, SIZE),
        draw(batch, KV_HEADS, places, SIZE),
        torch.tensor(lengths, dtype=torch.int32) - 1,
        torch.tensor(total, dtype=torch.int32),
    ]
    expected = run_node(
        "GroupQueryAttention",
        inputs,
        3,
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        scale=0.3,
        do_rotary=0,
    )
    found = GroupQueryAttention.apply(*inputs, HEADS, KV_HEADS, 0.3)
    for row, length in enumerate(lengths):
        real = min(new, length)  # of the new tokens; padding computes what nobody reads
        assert np.allclose(found[0][row, :real], expected[0][row, :real], atol=1e-5)
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            assert ours.shape == theirs.shape
            assert np.allclose(ours[row, :, :length], theirs[row, :, :length], atol=1e-6)


def test_multi_head_attention() -> None:
    q, k, v = torch.randn(3, 2, 5, HEADS * SIZE, generator=torch.Generator().manual_seed(1)).unbind(0)
    (expected,) = run_node("MultiHeadAttention", [q, k, v], 1, num_heads=HEADS, scale=0.3)
    assert np.allclose(MultiHeadAttention.apply(q, k, v, HEADS, 0.3), expected, atol=1e-5)


@pytest.mark.parametrize("form", [FUSED, PARTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_keys_that_do_not_count_are_not_seen(dtype: torch.dtype, form: str) -> None:
    """The additional channel against a mask, also with keys far larger than others."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, HEADS, 7, SIZE, generator=generator).to(dtype) for _ in range(3))
    seen_BS = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True, False] * 3 + [True]])
    k = torch.where(seen_BS[:, None, :, None], k, k * 50)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), attn_mask=seen_BS[:, None, None], scale=0.35
    )
    found = attend(q, k, v, seen_BS, 0.35, form=form)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert torch.allclose(found.transpose(1, 2).float(), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (SimpleNamespace(layer_idx=0), {"sliding_window": 8}, "slides a window of 8 tokens"),
        (SimpleNamespace(layer_idx=0, is_causal=False), {}, "is not causal"),
    ],
)
def test_other_attention_is_refused(module: Any, options: dict[str, Any], message: str) -> None:
    z_BHSC = torch.zeros(1, 2, 3, 4)
    cache = GroupQueryCache([(z_BHSC, z_BHSC)], torch.ones(1, 6, dtype=torch.int64))
    with pytest.raises(ModelError, match=message):
        group_query_attention(module, z_BHSC, z_BHSC, z_BHSC, None, group_query_cache=cache, **options)
