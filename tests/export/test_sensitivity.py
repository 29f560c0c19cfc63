"""What each weight costs: a damaged one is found, keeping what costs most helps, and the budget holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.build import DECODER
from genrecal.core.errors import BuildError
from genrecal.export import parity, sensitivity
from genrecal.export.graph_parity import decoder_feed, open_graph
from genrecal.export.quantize.blocks import nearest
from genrecal.export.quantize.schemes import scheme_of
from genrecal.export.quantize.weights import quantize_weights
from genrecal.export.reference import Reference, reference_of
from genrecal.export.sensitivity import measure, public_name, stored_names, worth_keeping

SCHEME = scheme_of("int4", "cpu")[DECODER]


@pytest.fixture(scope="module")
def references(student: tuple[Any, Any]) -> list[Reference]:
    return reference_of(*student, parity.default_queries()[:2], max_new_tokens=4)[0]


def test_a_weight_that_is_rounded_badly_is_named(fp32_graphs: Path, references: list[Reference]) -> None:
    bad = "model.language_model.layers.1.mlp.up_proj.weight"

    def rounding(name: str, weight_KN: Any, *rest: Any) -> Any:
        yield from nearest(name, np.roll(weight_KN, 1, 0) if public_name(name) == bad else weight_KN, *rest)

    source = fp32_graphs / f"{DECODER}.onnx"
    costs = measure(source, SCHEME, references, rounding=rounding)
    assert len(costs) == 3 * 7 + 1 and costs[0].weight == bad
    assert all(cost.divergence >= 0 and cost.extra_bytes > 0 for cost in costs)
    assert costs[0].divergence > 2 * costs[1].divergence
    head = next(cost for cost in costs if "embed_tokens" in cost.weight)
    assert head.bits == 8 and head.divergence < costs[1].divergence
    assert not list(fp32_graphs.glob(".*"))


def test_keeping_what_is_worth_it_helps(
    fp32_graphs: Path, references: list[Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fp32_graphs / f"{DECODER}.onnx"
    costs = measure(source, SCHEME, references)
    plain = quantize_weights(source, tmp_path / "plain.onnx", SCHEME)
    monkeypatch.setattr(sensitivity, "KEPT_SHARE", 0.3)
    kept = worth_keeping(costs, decoder_bytes=plain["bytes"])
    assert 0 < len(kept) < len(costs)
    names = stored_names(source, kept)
    better = quantize_weights(source, tmp_path / "kept.onnx", SCHEME, keep=names)
    assert plain["bytes"] < better["bytes"] <= 1.3 * plain["bytes"]
    expected = {cost.weight: cost.extra_bytes for cost in costs}
    assert better["bytes"] - plain["bytes"] == sum(expected[name] for name in kept)
    logits = []
    for path in (source, tmp_path / "plain.onnx", tmp_path / "kept.onnx"):
        session = open_graph(path)
        logits.append(session.run(["logits"], decoder_feed(session, references[0]))[0])
    assert np.linalg.norm(logits[2] - logits[0]) < np.linalg.norm(logits[1] - logits[0])


def test_no_budget_keeps_nothing_and_unknown_names_are_refused(fp32_graphs: Path) -> None:
    assert worth_keeping([], decoder_bytes=1000) == []
    with pytest.raises(BuildError, match="no product of it has a weight 'layers'"):
        stored_names(fp32_graphs / f"{DECODER}.onnx", ["layers"])
