"""Golden: the losses of single tokens against their definitions in float64, at their edges too."""

from __future__ import annotations

import math

import pytest
import torch

from genrecal.train.losses import (
    answer_cross_entropy,
    relation_distance,
    reverse_divergence,
    skewed_reverse_divergence,
    sorted_distance,
    teacher_divergence,
)
from tests.train import reference_methods as reference

TOKENS, ENTRIES = 5, 11


def logits(seed: int, entries: int = ENTRIES) -> torch.Tensor:
    return 3 * torch.randn(TOKENS, entries, generator=torch.Generator().manual_seed(seed))


def rows(logits_TV: torch.Tensor) -> list[torch.Tensor]:
    return [reference.probabilities(row.double()) for row in logits_TV]


def by_definition(distance: reference.Distance, p: torch.Tensor, q: torch.Tensor) -> list[float]:
    return [float(distance(one, other)) for one, other in zip(rows(p), rows(q), strict=True)]


def test_divergences_equal_their_definitions() -> None:
    p, q = logits(0), logits(1)
    assert teacher_divergence(p, q).tolist() == pytest.approx(by_definition(reference.kl, p, q), rel=1e-5)
    assert reverse_divergence(p, q).tolist() == pytest.approx(
        by_definition(reference.reverse_kl, p, q), rel=1e-5
    )
    for skew in (0.1, 0.5, 0.9):
        found = skewed_reverse_divergence(p, q, skew=skew).tolist()
        assert found == pytest.approx(by_definition(reference.skewed_reverse_kl(skew), p, q), rel=1e-5)


def test_directions_and_skews_differ() -> None:
    """So that none of the comparisons above could hold by accident."""
    p, q = logits(0), logits(1)
    found = [
        teacher_divergence(p, q),
        reverse_divergence(p, q),
        *(skewed_reverse_divergence(p, q, skew=skew) for skew in (0.1, 0.5)),
    ]
    for number, one in enumerate(found):
        assert (one > 0).all()
        assert all((one - other).abs().min() > 1e-3 for other in found[:number])
    for divergence in (teacher_divergence, reverse_divergence):
        assert divergence(p, p + 7).abs().max() < 1e-6


@pytest.mark.parametrize("impossible", [-200.0, -1e30, -torch.inf])
def test_the_skewed_divergence_is_finite_where_the_teacher_finds_nothing_possible(impossible: float) -> None:
    """Of entries that the student puts all its mass on; it is at most -log(skew) there."""
    p, q = logits(0), logits(1)
    p[:, :6] = impossible
    q[:, 6:] = -200.0
    q.requires_grad_(True)
    found = skewed_reverse_divergence(p, q, skew=0.1)
    assert torch.isfinite(found).all()
    assert found.tolist() == pytest.approx([-math.log(0.1)] * TOKENS, rel=1e-5)
    found.sum().backward()
    assert q.grad is not None and torch.isfinite(q.grad).all()
    # The plain reverse divergence grows with how impossible it is, and has no bound.
    assert (reverse_divergence(p, q) > 100).all()


def test_entries_that_both_find_impossible_count_nothing() -> None:
    p, q = logits(0), logits(1)
    wide_p, wide_q = (torch.nn.functional.pad(part, (0, 4), value=-1e30) for part in (p, q))
    for divergence in (teacher_divergence, reverse_divergence):
        assert torch.allclose(divergence(wide_p, wide_q), divergence(p, q), atol=1e-6)
    assert torch.allclose(
        skewed_reverse_divergence(wide_p, wide_q, skew=0.1),
        skewed_reverse_divergence(p, q, skew=0.1),
        atol=1e-6,
    )


@pytest.mark.parametrize(("entries_p", "entries_q"), [(11, 11), (7, 11), (11, 7)])
def test_sorted_distance_equals_its_definition(entries_p: int, entries_q: int) -> None:
    p, q = logits(0, entries_p), logits(1, entries_q)
    found = sorted_distance(p.softmax(-1), q.softmax(-1)).tolist()
    assert found == pytest.approx(by_definition(reference.sorted_distance, p, q), rel=1e-5)


def test_sorted_distance_by_hand() -> None:
    """Which entry holds a probability does not matter, and a longer vocabulary's tail stands beside zeros."""
    p, q = torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([[0.3, 0.1, 0.1, 0.5]])
    assert float(sorted_distance(p, q)[0]) == pytest.approx(0.2 + 0.1 + 0.0 + 0.1)
    assert float(sorted_distance(p, p[:, [2, 0, 1]])[0]) == pytest.approx(0.0)


def test_relation_equals_its_definition() -> None:
    teacher, student = logits(0, 8), logits(1, 3)
    found = float(relation_distance(teacher, student))
    assert found == pytest.approx(float(reference.relation(teacher.double(), student.double())), rel=1e-5)
    assert found > 1e-2


def test_relation_sees_angles_between_tokens_alone() -> None:
    """Neither lengths nor a rotation of the space change it, and a width of its own is no difference."""
    teacher = logits(0, 8)
    rotation, _ = torch.linalg.qr(logits(2, 5)[:, :5])
    assert float(relation_distance(teacher[:, :5], 3 * teacher[:, :5] @ rotation)) == pytest.approx(
        0.0, abs=1e-6
    )
    scaled = teacher * torch.arange(1, TOKENS + 1)[:, None]
    assert float(relation_distance(teacher, scaled)) == pytest.approx(0.0, abs=1e-6)
    wide = torch.nn.functional.pad(teacher, (0, 3))
    assert float(relation_distance(teacher, wide)) == pytest.approx(0.0, abs=1e-6)


def test_losses_are_float32_whatever_they_are_given() -> None:
    p, q = logits(0).bfloat16(), logits(1).bfloat16()
    ids = torch.zeros(TOKENS, dtype=torch.long)
    for found in (
        teacher_divergence(p, q),
        reverse_divergence(p, q),
        skewed_reverse_divergence(p, q, skew=0.1),
        sorted_distance(p.softmax(-1), q.softmax(-1)),
        answer_cross_entropy(q, ids),
        relation_distance(p, q),
    ):
        assert found.dtype == torch.float32
