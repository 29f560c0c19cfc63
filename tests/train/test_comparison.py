"""Golden: the comparison methods on real models and padded batches against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genrecal.core.errors import TrainError
from genrecal.data.batch import Batch, PairedBatch, collate
from genrecal.data.pair import PairedSample
from genrecal.data.vocabulary import shared_ids
from genrecal.train.comparison import COMPARISONS, Comparison, Pair, image_mask, position_mask
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from tests.data.spellings import spelled
from tests.kin import PADDED, Kin
from tests.tiny import TinyData, TinyPair
from tests.train import reference_methods as reference
from tests.train.algorithm_parts import Parts, make_parts, sides

Sum = Callable[[reference.Two, PairedSample], torch.Tensor]


@pytest.fixture(scope="module")
def cross(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    """Two vocabularies and two image schemes."""
    return make_parts(tiny_pair, tiny_data)


@pytest.fixture(scope="module")
def same(tiny_pair: TinyPair, kin: Kin, tiny_data: TinyData) -> Parts:
    """Equal token types; the student's embedding is longer than the teacher's."""
    return make_parts(TinyPair(teacher=tiny_pair.teacher, student=kin.twin), tiny_data)


@pytest.fixture(scope="module")
def equal_text(tiny_pair: TinyPair, kin: Kin, tiny_data: TinyData) -> Parts:
    """Equal tokenizers, other image tokens."""
    return make_parts(TinyPair(teacher=tiny_pair.teacher, student=kin.tiles), tiny_data)


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


def definition(parts: Parts, loss: str) -> Sum:
    """A loss of a pair with equal token types, by its definition."""
    token = image_token(parts)
    definitions: dict[str, Sum] = {
        "reverse_kl": lambda one, _: reference.everywhere(one, reference.reverse_kl),
        "skewed_reverse_kl": lambda one, _: reference.everywhere(one, reference.skewed_reverse_kl(0.1)),
        "response_kl": lambda one, _: reference.at_answers(one, reference.kl),
        "visual_kl": lambda one, _: reference.at_images(one, reference.kl, token),
        "relation": lambda one, _: (
            reference.image_relation(one, token) if one.student.vision else torch.tensor(0.0)
        ),
    }
    return definitions[loss]


# Parameters near the head, in the body, at the words and in the projector.
PROBED = (
    "lm_head.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.language_model.embed_tokens.weight",
    "model.multi_modal_projector.linear_2.weight",
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
    names: tuple[str, ...] = PROBED,
    rel: float = 1e-5,
    **settings: Any,
) -> None:
    """The term of the whole mixed batch, and what it asks of the student's weights."""
    for model in (parts.student, parts.student64):
        model.requires_grad_(True)
    try:
        found = objective(parts, loss, **settings)(parts.batch())[loss]
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


@pytest.mark.parametrize("loss", ["reverse_kl", "skewed_reverse_kl", "response_kl", "visual_kl", "relation"])
def test_equal_token_types(same: Parts, loss: str) -> None:
    vocabularies = [model.get_output_embeddings().weight.shape[0] for model in (same.student, same.teacher)]
    assert vocabularies[0] == vocabularies[1] + PADDED
    assert_equal_with_gradients(same, loss, definition(same, loss))


@pytest.mark.parametrize("loss", ["reverse_kl", "skewed_reverse_kl", "response_kl"])
def test_equal_tokenizers_distil_answers_alone(equal_text: Parts, loss: str) -> None:
    distance = {
        "reverse_kl": reference.reverse_kl,
        "skewed_reverse_kl": reference.skewed_reverse_kl(0.1),
        "response_kl": reference.kl,
    }[loss]

    def expected(one: reference.Two, _: PairedSample) -> torch.Tensor:
        return reference.at_answers(one, distance)

    assert_equal_with_gradients(equal_text, loss, expected, answer_only=True)


def test_the_skew_is_the_settings_own(same: Parts) -> None:
    with torch.no_grad():
        found = {
            skew: float(objective(same, "skewed_reverse_kl", skew=skew)(same.batch())["skewed_reverse_kl"])
            for skew in (0.1, 0.5)
        }
    assert found[0.1] > found[0.5] * 1.1


QWEN = (
    "lm_head.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.visual.merger.mlp.2.weight",
)


def test_uld_across_vocabularies(cross: Parts) -> None:
    batch = cross.batch()
    assert (batch.student.answer_mask_BA.sum(1) != batch.teachers[0].answer_mask_BA.sum(1)).any()
    assert_equal_with_gradients(cross, "uld", lambda one, _: reference.uld(one), names=QWEN)


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

    assert_equal_with_gradients(cross, "gold", expected, names=QWEN, rel=1e-4, shared_ids=shared)
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
        terms = itself(_collate(rows, padding, cross))
    assert float(terms["gold"]) == pytest.approx(0.0, abs=1e-4)
    assert float(terms["uld"]) == pytest.approx(0.0, abs=1e-4)


def test_counts_are_the_places_that_the_sums_are_taken_at(same: Parts, cross: Parts) -> None:
    whole = [len(row.student.question_ids) + len(row.student.answer_ids) - 1 for row in same.rows]
    images = [int((row.student.question_ids == image_token(same)).sum()) for row in same.rows]
    answers = [len(row.student.answer_ids) for row in same.rows]
    found = objective(same, "reverse_kl").counts(same.batch())
    assert found == {
        "student_tokens": sum(answers),
        "positions": sum(whole),
        "image_positions": sum(images),
        "samples_with_images": sum(map(bool, images)),
        "paired_tokens": sum(answers),
        "common_ends": sum(answers),
    }
    assert objective(same, "reverse_kl", answer_only=True).counts(same.batch())["positions"] == sum(answers)
    paired = [min(len(row.student.answer_ids), len(row.teachers[0].answer_ids)) for row in cross.rows]
    assert objective(cross, "uld").counts(cross.batch())["paired_tokens"] == sum(paired)


def test_masks_leave_padding_and_the_blank_image_out(same: Parts) -> None:
    for rows in (same.rows, same.text_rows):
        batch = same.batch(rows).student
        mask_BS, images_BS = position_mask(batch), image_mask(batch, image_token(same))
        for place, row in enumerate(rows):
            length = len(row.student.question_ids) + len(row.student.answer_ids)
            assert mask_BS[place].nonzero()[:, 0].tolist() == list(range(length - 1))
            assert int(images_BS[place].sum()) == int((row.student.question_ids == image_token(same)).sum())
    assert batch.vision and (batch.input_ids_BS == image_token(same)).any() and not images_BS.any()


@pytest.mark.parametrize("loss", ["visual_kl", "relation"])
def test_a_batch_of_text_has_no_image_loss(same: Parts, loss: str) -> None:
    """A zero that still has a gradient path: under ZeRO-3 every rank walks back through the same modules."""
    same.student.requires_grad_(True)
    try:
        found = objective(same, loss)(same.batch(same.text_rows))[loss]
        assert float(found.detach()) == 0.0 and found.requires_grad
        found.backward()
        assert all(p.grad is None or not p.grad.any() for p in same.student.parameters())
    finally:
        same.student.requires_grad_(False)
        same.student.zero_grad()


def test_different_tokens_are_an_error(cross: Parts, equal_text: Parts) -> None:
    for parts, settings in ((cross, {}), (cross, {"answer_only": True}), (equal_text, {})):
        with pytest.raises(TrainError, match="student and teacher read different tokens"):
            objective(parts, "reverse_kl", **settings)(parts.batch())


class Said:
    """Stands where a VLM does, with its logits in place of its features."""

    def get_output_embeddings(self) -> torch.nn.Module:
        return torch.nn.Identity()


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


def test_gold_by_hand() -> None:
    """The answer "ab c" and the end of the turn; what p and q are multiplied with stands beside them.

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
    groups = [
        # ab: one token of the student; two of the teacher, the second with 0.5
        ([0.3 * 0.5, 0.3 * 0.5, 0.1 * 0.5, 1 - 0.7 * 0.5], [0.2, 0.5, 0.1, 0.2]),
        # ␣c: the teacher's second token with 0.5
        ([0.1 * 0.5, 0.2 * 0.5, 0.1 * 0.5, 1 - 0.4 * 0.5], [0.1, 0.1, 0.1, 0.7]),
        # the end of the turn
        ([0.1, 0.05, 0.7, 0.15], [0.2, 0.1, 0.6, 0.1]),
    ]
    expected = sum(
        a * float(torch.tensor(a / b).log()) for one, other in groups for a, b in zip(one, other, strict=True)
    )
    batch_s, batch_l = said([1, 2, 3], [2, 4, 5]), said([1, 2, 3, 4, 0], [1, 2, 3, 4, 5])
    logits = {"z_s_BSD": q.log()[None], "z_l_BSD": p.log()[None]}
    pair = Pair(
        student=Said(),
        teacher=Said(),
        batch_s=batch_s,
        batch_l=batch_l,
        embedded_s_BSD=q,
        embedded_l_BSD=p,
        **logits,
    )
    shared = torch.tensor([0, 1, 3]), torch.tensor([1, 5, 0])
    found = COMPARISONS["gold"](pair, Comparison(shared_ids=shared))
    assert len(found) == 3
    assert float(found.sum()) == pytest.approx(expected, rel=1e-5)


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
