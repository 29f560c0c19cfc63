"""Golden: the comparison methods on real models and padded batches against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from genrecal.core.errors import TrainError
from genrecal.data.pair import PairedSample
from genrecal.train.comparison import image_mask, position_mask
from tests.kin import PADDED, Kin
from tests.tiny import TinyData, TinyPair
from tests.train import reference_methods as reference
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.comparison_parts import QWEN2_VL, Sum, assert_equal_with_gradients, image_token, objective


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
            skew: float(
                objective(same, "skewed_reverse_kl", skew=skew)(same.batch()).terms["skewed_reverse_kl"]
            )
            for skew in (0.1, 0.5)
        }
    assert found[0.1] > found[0.5] * 1.1


def test_uld_across_vocabularies(cross: Parts) -> None:
    batch = cross.batch()
    assert (batch.student.answer_mask_BA.sum(1) != batch.teachers[0].answer_mask_BA.sum(1)).any()
    assert_equal_with_gradients(cross, "uld", lambda one, _: reference.uld(one), names=QWEN2_VL)


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
        found = objective(same, loss)(same.batch(same.text_rows), {loss: 1.0}).total
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
