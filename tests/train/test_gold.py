"""Golden: GOLD's loss by hand, and through two real tokenizers with different merges."""

from __future__ import annotations

import math

import pytest
import torch

from genrecal.data.batch import Batch, PairedBatch, collate
from genrecal.data.pair import PairedSample
from genrecal.data.vocabulary import shared_ids
from genrecal.train.comparison import COMPARISONS, Comparison, Pair
from genrecal.train.head import Head
from genrecal.train.head_pair import HeadPair
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from tests.data.spellings import spelled
from tests.tiny import TinyData, TinyPair
from tests.train import reference_methods as reference
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.comparison_parts import QWEN2_VL, assert_equal_with_gradients, objective


@pytest.fixture(scope="module")
def cross(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    """Two vocabularies and two image schemes."""
    return make_parts(tiny_pair, tiny_data)


class Said:
    """A head whose features are its logits."""

    def __init__(self, entries: int) -> None:
        self.linear = torch.nn.Linear(entries, entries, bias=False)
        torch.nn.init.eye_(self.linear.weight)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.linear


def said(answer: list[int], ends: list[int]) -> Batch:
    """One sample with a question of one token."""
    return Batch(
        input_ids_BS=torch.tensor([[0, *answer]]),
        attention_mask_BS=torch.ones(1, len(answer) + 1),
        question_lengths_B=torch.tensor([1]),
        answer_ids_BA=torch.tensor([answer]),
        answer_mask_BA=torch.ones(1, len(answer), dtype=torch.bool),
        answer_ends_BA=torch.tensor([ends]),
        token_inputs={},
        vision={},
    )


def pair_of(batch_s: Batch, batch_l: Batch, q_SV: torch.Tensor, p_SV: torch.Tensor) -> Pair:
    """Two models that have these probabilities at each position."""
    return Pair(
        heads=HeadPair(Head(Said(p_SV.shape[-1])), Head(Said(q_SV.shape[-1]))),
        batch_s=batch_s,
        batch_l=batch_l,
        z_s_BSD=q_SV.log()[None],
        z_l_BSD=p_SV.log()[None],
        embedded_s_BSD=q_SV,
        embedded_l_BSD=p_SV,
    )


def divergence(p: list[float], q: list[float]) -> float:
    return sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))


def test_gold_by_hand() -> None:
    """The answer "ab c" and the end of the turn.

    student    ab | ␣c | end           entries  0 a, 1 ab, 2 ␣c, 3 end
    teacher    a | b | ␣ | c | end     entries  0 end, 1 a, 2 b, 3 ␣, 4 c, 5 ab
    shared     a, ab, end
    """
    q = torch.tensor([[0.2, 0.5, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.2, 0.1, 0.1, 0.6], [0.25] * 4])
    p = torch.tensor(
        [
            [0.1, 0.3, 0.1, 0.1, 0.1, 0.3],  # before a
            [0.1, 0.1, 0.5, 0.1, 0.1, 0.1],  # before b
            [0.1, 0.1, 0.1, 0.4, 0.1, 0.2],  # before ␣
            [0.1, 0.1, 0.1, 0.1, 0.5, 0.1],  # before c
            [0.7, 0.1, 0.05, 0.05, 0.05, 0.05],  # before end
            [1 / 6] * 6,
        ]
    )
    expected = (
        divergence([0.3 * 0.5, 1 - 0.3 * 0.5], [0.5, 0.5])  # ab, or another text
        + divergence([0.4 * 0.5, 1 - 0.4 * 0.5], [0.7, 0.3])  # ␣c, or another text
        + divergence([0.1, 0.05, 0.7, 0.15], [0.2, 0.1, 0.6, 0.1])  # a, ab, end, or what one of them has
    )
    pair = pair_of(said([1, 2, 3], [2, 4, 5]), said([1, 2, 3, 4, 0], [1, 2, 3, 4, 5]), q, p)
    shared = torch.tensor([0, 1, 3]), torch.tensor([1, 5, 0])
    found = COMPARISONS["gold"](pair, Comparison(shared_ids=shared))
    assert len(found) == 3
    assert float(found.sum()) == pytest.approx(expected, rel=1e-5)


def test_models_that_say_the_same_text_are_not_apart() -> None:
    """Both are sure of "ab", which both vocabularies could spell either way."""
    sure, unsure = 0.9997, 0.0001
    q = torch.full((3, 4), unsure)
    q[0, 0] = q[1, 1] = sure  # a, then b
    p = torch.full((2, 4), unsure)
    p[0, 2] = sure  # ab
    every = torch.arange(4)
    pair = pair_of(said([0, 1], [1, 2]), said([2], [2]), q, p)
    (found,) = COMPARISONS["gold"](pair, Comparison(shared_ids=(every, every)))
    assert float(found) == pytest.approx(0.0, abs=1e-3)


def test_a_space_that_one_template_puts_before_the_answer() -> None:
    """`␣the` beside `the`: each vocabulary has both, and each model is sure of its own."""
    sure, unsure = 0.9999, 0.0001
    q, p = torch.full((2, 2), unsure), torch.full((2, 2), unsure)
    q[0, 0] = sure  # ␣the
    p[0, 1] = sure  # the
    every = torch.arange(2)
    pair = pair_of(said([0], [3]), said([1], [3]), q, p)
    (found,) = COMPARISONS["gold"](pair, Comparison(shared_ids=(every, every)))
    assert float(found) == pytest.approx(0.0, abs=1e-3)


def shared_with(parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    return shared_ids(parts.reader.student, parts.reader.teachers[0])


def groups(parts: Parts, row: PairedSample) -> list[tuple[range, range]]:
    """Cut both answers wherever both have spelled the same bytes; the ends of the turn are the last group."""
    done = []
    for processor, tokens in (
        (parts.reader.student, row.student),
        (parts.reader.teachers[0], row.teachers[0]),
    ):
        parts_A = spelled(processor.tokenizer, tokens.answer_ids[:-1].tolist())
        done.append([sum(map(len, parts_A[: place + 1])) for place in range(len(parts_A))])
    cuts = [(done[0].index(size) + 1, done[1].index(size) + 1) for size in done[0] if size in done[1]]
    cuts.append((len(done[0]) + 1, len(done[1]) + 1))
    before = [(0, 0), *cuts[:-1]]
    return [
        (range(own, own_end), range(other, other_end))
        for (own, other), (own_end, other_end) in zip(before, cuts, strict=True)
    ]


def test_gold_across_vocabularies(cross: Parts) -> None:
    """Two tokenizers with different merges: groups of one and of several tokens on either side."""
    shared = shared_with(cross)
    pairs = list(zip(*(ids.tolist() for ids in shared), strict=True))
    by_row = {row.id: groups(cross, row) for row in cross.rows}
    sizes = {(len(own), len(other)) for found in by_row.values() for own, other in found}
    assert {(1, 1), (2, 1)} <= sizes or {(1, 1), (1, 2)} <= sizes

    def expected(one: reference.Two, row: PairedSample) -> torch.Tensor:
        return reference.gold(one, pairs, by_row[row.id])

    assert_equal_with_gradients(cross, "gold", expected, names=QWEN2_VL, rel=1e-4, shared_ids=shared)
    counts = objective(cross, "gold", shared_ids=shared).counts(cross.batch())
    assert counts["common_ends"] == sum(map(len, by_row.values()))


def test_gold_of_a_model_with_itself_is_nothing(cross: Parts) -> None:
    rows = tuple(_both(row) for row in cross.rows)
    processor = cross.reader.student
    itself = Objective(
        student=cross.student,
        sources=[Source(cross.student)],
        losses=("gold", "uld", "sft"),
        comparison=Comparison(shared_ids=shared_ids(processor, processor)),
    ).eval()
    padding = processor.tokenizer.pad_token_id
    with torch.no_grad():
        terms = itself(_collate(rows, padding, cross)).terms
    assert float(terms["gold"]) == pytest.approx(0.0, abs=1e-4)
    assert float(terms["uld"]) == pytest.approx(0.0, abs=1e-4)


def _both(row: PairedSample) -> PairedSample:
    return PairedSample(id=row.id, domain=row.domain, student=row.student, teachers=(row.student,))


def _collate(rows: tuple[PairedSample, ...], padding: int, parts: Parts) -> PairedBatch:
    return collate(
        rows,
        student_padding=padding,
        teacher_paddings=[padding],
        student_blank=parts.reader.student_blank,
        teacher_blanks=[parts.reader.student_blank],
    )
