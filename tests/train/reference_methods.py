"""The comparison methods' losses in float64, one sample and one position at a time, from their definitions.

p is the teacher's distribution and q the student's; both are rows of probabilities, [V] each. Positions are
read as in reference.py: the token at n + 1 is predicted at n. No code of genrecal; models are run by
reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.train.reference import Sides, Tensor, embedded, head, vlm_body

Distance = Callable[[Tensor, Tensor], Tensor]


def probabilities(logits: Tensor) -> Tensor:
    weights = torch.exp(logits - logits.max())
    return weights / weights.sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), where 0 log 0 is 0."""
    some = p > 0
    return (p[some] * (torch.log(p[some]) - torch.log(q[some]))).sum()


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return kl(q, p)


def skewed_reverse_kl(skew: float) -> Distance:
    return lambda p, q: kl(q, (1 - skew) * p + skew * q)


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    """Largest beside largest, and so on; what only one vocabulary has stands beside nothing."""
    length = max(len(p), len(q))
    p, q = (torch.cat([row, torch.zeros(length - len(row)).double()]) for row in (p, q))
    return sum(abs(a - b) for a, b in zip(p[torch.argsort(-p)], q[torch.argsort(-q)], strict=True))


def relation(teacher_PD: Tensor, student_PD: Tensor) -> Tensor:
    """1 - cosine of the two tables of cosines between image tokens."""

    def table(features: Tensor) -> Tensor:
        return torch.stack([torch.stack([cosine(one, other) for other in features]) for one in features])

    return 1 - cosine(table(teacher_PD).reshape(-1), table(student_PD).reshape(-1))


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / torch.sqrt((one**2).sum() * (other**2).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Two:
    """One sample through both models."""

    student64: Any
    teacher64: Any
    student: Sides
    teacher: Sides

    def logits(self) -> tuple[Tensor, Tensor]:
        """Teacher's and student's logits of every position, [N, V] each."""
        with torch.no_grad():
            p = head(self.teacher64, vlm_body(self.teacher64, self.teacher))
        return p, head(self.student64, vlm_body(self.student64, self.student))


def everywhere(two: Two, distance: Distance) -> Tensor:
    """At every position that predicts a token of question, image or answer; both read the same tokens."""
    ids = two.student.question + two.student.answer
    assert ids == two.teacher.question + two.teacher.answer
    return _at(two, [(n, n) for n in range(len(ids) - 1)], distance)


def at_images(two: Two, distance: Distance, image_token: int) -> Tensor:
    ids = two.student.question + two.student.answer
    return _at(two, [(n, n) for n, token in enumerate(ids) if token == image_token], distance)


def at_answers(two: Two, distance: Distance) -> Tensor:
    """At the positions that predict the answer's tokens, of which both have as many."""
    assert two.student.answer == two.teacher.answer
    starts = len(two.teacher.question) - 1, len(two.student.question) - 1
    return _at(two, [(starts[0] + n, starts[1] + n) for n in range(len(two.student.answer))], distance)


def _at(two: Two, positions: list[tuple[int, int]], distance: Distance) -> Tensor:
    p_NV, q_NV = two.logits()
    common = min(p_NV.shape[1], q_NV.shape[1])
    return sum(
        (distance(probabilities(p_NV[n, :common]), probabilities(q_NV[m, :common])) for n, m in positions),
        torch.tensor(0.0).double(),
    )


def image_relation(two: Two, image_token: int) -> Tensor:
    places = [n for n, token in enumerate(two.student.question) if token == image_token]
    with torch.no_grad():
        x_l = embedded(two.teacher64, two.teacher)[0][places]
    return relation(x_l, embedded(two.student64, two.student)[0][places])


def uld(two: Two) -> Tensor:
    """The n-th answer token of the one beside the n-th of the other, as far as both go."""
    p_NV, q_NV = two.logits()
    starts = len(two.teacher.question) - 1, len(two.student.question) - 1
    return sum(
        (
            sorted_distance(probabilities(p_NV[starts[0] + n]), probabilities(q_NV[starts[1] + n]))
            for n in range(min(len(two.teacher.answer), len(two.student.answer)))
        ),
        torch.tensor(0.0).double(),
    )


def gold(two: Two, shared: list[tuple[int, int]], groups: list[tuple[range, range]]) -> Tensor:
    """KL(p || q) for every group of tokens that spells the same text in both vocabularies.

    Args:
        two: the sample.
        shared: entries that both vocabularies have: (student's id, teacher's id).
        groups: places in the student's and in the teacher's answer.
    """
    p_NV, q_NV = two.logits()
    q_AV, p_AV = q_NV[len(two.student.question) - 1 :], p_NV[len(two.teacher.question) - 1 :]
    total = torch.tensor(0.0).double()
    for own, other in groups:
        said = [two.student.answer[place] for place in own], [two.teacher.answer[place] for place in other]
        if len(own) == len(other) == 1 and (said[0][0], said[1][0]) in shared:
            q = probabilities(q_AV[own[0]])[[pair[0] for pair in shared]]
            p = probabilities(p_AV[other[0]])[[pair[1] for pair in shared]]
        else:
            q, p = text(q_AV, own, said[0]), text(p_AV, other, said[1])
        total = total + kl(with_rest(p), with_rest(q))
    return total


def text(logits_AV: Tensor, places: range, said: list[int]) -> Tensor:
    """The probability of what is said there, [1]."""
    product = torch.tensor([1.0]).double()
    for place, token in zip(places, said, strict=True):
        product = product * probabilities(logits_AV[place])[token]
    return product


def with_rest(events: Tensor) -> Tensor:
    return torch.cat([events, (1 - events.sum())[None]])
