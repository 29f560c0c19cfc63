"""A pair of models under a comparison method, and how its losses are held against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genrecal.data.pair import PairedSample
from genrecal.train.comparison import Comparison
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from tests.train import reference_methods as reference
from tests.train.algorithm_parts import Parts, sides

Sum = Callable[[reference.Two, PairedSample], torch.Tensor]
# Parameters near the head, in the body, at the words and in the projector.
INTERNVL = (
    "lm_head.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.language_model.embed_tokens.weight",
    "model.multi_modal_projector.linear_2.weight",
)
QWEN2_VL = (
    "lm_head.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.visual.merger.mlp.2.weight",
)


def objective(parts: Parts, loss: str, **settings: Any) -> Objective:
    return Objective(
        student=parts.student,
        sources=[Source(parts.teacher)],
        losses=(loss, "sft"),
        comparison=Comparison(image_token_id=image_token(parts), **settings),
    ).eval()


def image_token(parts: Parts) -> int:
    return parts.student.config.image_token_id


def two(parts: Parts, row: PairedSample) -> reference.Two:
    return reference.Two(
        student64=parts.student64,
        teacher64=parts.teacher64,
        student=sides(row.student),
        teacher=sides(row.teachers[0]),
    )


def gradients(parts: Parts, total: torch.Tensor, model: Any, names: tuple[str, ...]) -> list[torch.Tensor]:
    found = torch.autograd.grad(
        total, [model.get_parameter(name) for name in names], allow_unused=True, materialize_grads=True
    )
    assert all(parameter.grad is None for parameter in parts.teacher.parameters())
    return [one.double() for one in found]


def assert_equal_with_gradients(
    parts: Parts,
    loss: str,
    expected: Sum,
    *,
    names: tuple[str, ...] = INTERNVL,
    rel: float = 1e-5,
    **settings: Any,
) -> None:
    """The term of the whole mixed batch, and what it asks of the student's weights."""
    for model in (parts.student, parts.student64):
        model.requires_grad_(True)
    try:
        found, terms = objective(parts, loss, **settings)(parts.batch(), {loss: 1.0})
        assert float(terms[loss]) == pytest.approx(float(found.detach()))
        total = sum(expected(two(parts, row), row) for row in parts.rows)
        assert float(found.detach()) == pytest.approx(float(total), rel=rel)
        assert float(found.detach()) > 1e-2
        pairs = zip(
            gradients(parts, found, parts.student, names),
            gradients(parts, total, parts.student64, names),
            strict=True,
        )
        for name, (mine, theirs) in zip(names, pairs, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4 * float(theirs.abs().max()) + 1e-9), name
    finally:
        for model in (parts.student, parts.student64):
            model.requires_grad_(False)
