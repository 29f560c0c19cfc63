"""A teacher's features as they are stored: exact, or within the step of int8; padded, and in place."""

from __future__ import annotations

import pytest
import torch

from genrecal.data.features import BLOCK, SampleFeatures, pack, pad_features, zeros

DEPTHS, WIDTH = 2, 3 * BLOCK


def vectors(positions: int, *, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(positions, DEPTHS, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_plain_types_give_back_what_they_were_given(kind: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    z = vectors(5).to(dtype)
    packed = pack(z, kind)
    assert packed.scales is None and packed.values.dtype == dtype
    assert torch.equal(packed.unpacked(dtype), z)


@pytest.mark.parametrize("width", [WIDTH, 96, 7])
def test_int8_is_within_half_a_step_of_its_block(width: int) -> None:
    """Also where the width is no multiple of a block, and where all of a block is zero."""
    z = vectors(40, width=width) * torch.logspace(-3, 3, 40)[:, None, None]
    z[3] = 0
    packed = pack(z, "int8")
    assert packed.values.dtype == torch.int8 and packed.values.shape == z.shape
    blocks = packed.scales.shape[-1]
    steps = z.unflatten(-1, (blocks, -1)).abs().amax(-1, keepdim=True) / 127
    error = (packed.unpacked(torch.float32) - z).unflatten(-1, (blocks, -1)).abs()
    # Half a step, and what fp16 rounds of a scale; absolute where the scale is a subnormal number.
    assert bool((error <= steps * 0.57 + 127 * 2**-25).all())


def test_a_large_entry_costs_its_own_block_alone() -> None:
    z = vectors(20)
    plain = pack(z, "int8").unpacked(torch.float32)
    z[..., 0] = 1000.0
    spoiled = pack(z, "int8").unpacked(torch.float32)
    assert torch.equal(plain[..., BLOCK:], spoiled[..., BLOCK:])
    assert not torch.equal(plain[..., 1:BLOCK], spoiled[..., 1:BLOCK])


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_batch_has_the_features_where_a_forward_pass_has_them(kind: str) -> None:
    lengths, questions = (4, 1, 3), (2, 6, 5)
    answers = [pack(vectors(length, seed=place), kind) for place, length in enumerate(lengths)]
    asked = [pack(vectors(length, seed=9 + place), kind) for place, length in enumerate(questions)]
    rows = [
        SampleFeatures(answer=answer, question=question, question_length=length)
        for answer, question, length in zip(answers, asked, questions, strict=True)
    ]
    batch = pad_features(rows).to(torch.device("cpu"))
    predicting, own, question = (
        batch.predicting(torch.float32),
        batch.answer(torch.float32),
        batch.question(torch.float32),
    )
    assert len(predicting) == len(own) == len(question) == DEPTHS
    for depth in range(DEPTHS):
        assert predicting[depth].shape == own[depth].shape == (3, 4, WIDTH)
        assert question[depth].shape == (3, 6, WIDTH)
        for row, length in enumerate(lengths):
            whole = answers[row].unpacked(torch.float32)[:, depth]
            assert torch.equal(predicting[depth][row, :length], whole)
            assert not predicting[depth][row, length:].any()
            assert torch.equal(own[depth][row, : length - 1], whole[1:])
            assert not own[depth][row, length - 1 :].any()  # the last position is not stored
            expected = asked[row].unpacked(torch.float32)[:, depth]
            assert torch.equal(question[depth][row, : questions[row]], expected)


def test_questions_are_read_where_all_rows_have_theirs() -> None:
    answer = zeros((2, DEPTHS, WIDTH), "bf16")
    with_question = SampleFeatures(answer=answer, question=answer, question_length=2)
    without = SampleFeatures(answer=answer, question=None, question_length=2)
    assert len(pad_features([with_question, with_question]).question(torch.float32)) == DEPTHS
    assert pad_features([with_question, without]).question(torch.float32) == []
