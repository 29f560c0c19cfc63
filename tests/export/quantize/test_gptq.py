"""GPTQ against plain rounding, on inputs whose channels depend on each other, and in a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.build import DECODER
from genrecal.export import parity
from genrecal.export.graph_parity import decoder_feed, open_graph
from genrecal.export.quantize import gptq
from genrecal.export.quantize.blocks import nearest, values_of
from genrecal.export.quantize.gptq import Gptq, rounded
from genrecal.export.quantize.schemes import scheme_of
from genrecal.export.quantize.weights import quantize_weights
from genrecal.export.reference import reference_of

BITS, BLOCK = 4, 32


@pytest.mark.parametrize("inputs", [64, 100])
def test_products_change_less_than_by_rounding(inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(inputs // 4, inputs, generator=generator)
    x_RK = torch.randn(500, inputs // 4, generator=generator) @ mixing
    x_RK += 0.1 * torch.randn(500, inputs, generator=generator)
    weight_KN = torch.randn(inputs, 40, generator=generator)
    (plain,) = nearest("w", weight_KN.numpy(), BITS, BLOCK, np.float32)
    better = rounded(weight_KN, x_RK.T @ x_RK / 500, BITS, BLOCK, np.float32)
    assert better.codes_NGB.shape == plain.codes_NGB.shape

    def error(coded: Any) -> float:
        return float((x_RK @ (torch.tensor(values_of(coded, BITS, inputs)) - weight_KN)).norm())

    assert error(better) < 0.7 * error(plain)


def test_channels_that_depend_on_nothing_are_rounded_to_the_nearest() -> None:
    weight_KN = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    (plain,) = nearest("w", weight_KN.numpy(), BITS, BLOCK, np.float32)
    found = rounded(weight_KN, torch.eye(64), BITS, BLOCK, np.float32)
    assert np.array_equal(found.codes_NGB, plain.codes_NGB)
    rounded(weight_KN, torch.zeros(64, 64), BITS, BLOCK, np.float32)  # inputs that are always zero


def test_a_decoder_is_measured_part_by_part(
    student: tuple[Any, Any], fp32_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graph, however many moments fit into memory; and closer to the student than by rounding."""
    references, _ = reference_of(*student, parity.default_queries(), max_new_tokens=4)
    source, scheme = fp32_graphs / f"{DECODER}.onnx", scheme_of("int4", "cpu")[DECODER]
    quantize_weights(source, tmp_path / "plain.onnx", scheme)
    quantize_weights(source, tmp_path / "gptq.onnx", scheme, rounding=Gptq(source, references))
    monkeypatch.setattr(gptq, "MOMENT_BYTES", 1)
    quantize_weights(source, tmp_path / "parts.onnx", scheme, rounding=Gptq(source, references))
    assert (tmp_path / "parts.onnx").read_bytes() == (tmp_path / "gptq.onnx").read_bytes()
    logits = {}
    for path in (source, tmp_path / "plain.onnx", tmp_path / "gptq.onnx"):
        session = open_graph(path)
        logits[path.stem] = np.concatenate(
            [session.run(["logits"], decoder_feed(session, entry))[0][0] for entry in references]
        )
    exact = logits[DECODER]
    errors = {name: np.linalg.norm(found - exact) for name, found in logits.items()}
    assert errors["gptq"] < 0.9 * errors["plain"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq.onnx", "parts.onnx", "plain.onnx"]
