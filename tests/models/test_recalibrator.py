"""The Recalibrator's own promises: causal, blind to padding, reading the student where the answer starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genrecal.models.recalibrator import Recalibrator, RecalibratorConfig, splice
from genrecal.models.vlm import text_body
from tests.families import ReadFamily

TEACHER_WIDTH = 64
LENGTHS = torch.tensor([5, 3, 7])
ANSWERS = torch.tensor([4, 6, 2])


@pytest.fixture(scope="module")
def student(family: ReadFamily) -> Any:
    """The text model of each family in turn."""
    return text_body(family.model())


@pytest.fixture(scope="module")
def recalibrator(student: Any) -> Recalibrator:
    torch.manual_seed(0)
    module = Recalibrator(RecalibratorConfig(), student_body=student, teacher_width=TEACHER_WIDTH)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:  # fresh weights are so small that attention would hardly show
                parameter.normal_(std=1 / parameter.shape[1] ** 0.5)
    return module.eval()


@pytest.fixture
def inputs(student: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    width = student.config.hidden_size
    return {
        "prefix_BQD": torch.randn(3, int(LENGTHS.max()), width, generator=generator),
        "prefix_lengths_B": LENGTHS,
        "suffix_BAD": torch.randn(3, int(ANSWERS.max()), TEACHER_WIDTH, generator=generator),
        "suffix_mask_BA": torch.arange(int(ANSWERS.max()))[None] < ANSWERS[:, None],
    }


@torch.no_grad()
def run(recalibrator: Recalibrator, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return recalibrator(**inputs, project_prefix=False).r_BAD


def test_causal(recalibrator: Recalibrator, inputs: dict[str, torch.Tensor]) -> None:
    """Answer feature t reaches r from entry t + 1 on, not before: it comes from the position before t."""
    before = run(recalibrator, inputs)
    for changed in range(int(ANSWERS[0])):
        suffix = inputs["suffix_BAD"].clone()
        suffix[0, changed] += 3.0
        after = run(recalibrator, inputs | {"suffix_BAD": suffix})
        assert torch.allclose(before[0, : changed + 1], after[0, : changed + 1], atol=1e-6)
        for later in range(changed + 1, int(ANSWERS[0])):
            assert (before[0, later] - after[0, later]).abs().max() > 1e-3
        assert torch.allclose(before[1:], after[1:], atol=1e-6)


def test_the_first_entry_reads_the_students_last_question_feature(
    recalibrator: Recalibrator, inputs: dict[str, torch.Tensor]
) -> None:
    before = run(recalibrator, inputs)
    for sample, length in enumerate(LENGTHS.tolist()):
        prefix = inputs["prefix_BQD"].clone()
        prefix[sample, length - 1] += 3.0
        after = run(recalibrator, inputs | {"prefix_BQD": prefix})
        assert (before[sample, 0] - after[sample, 0]).abs().max() > 1e-2
    # With no earlier question positions and no answer, the first entry is a function of that feature alone.
    alone = inputs | {"prefix_lengths_B": torch.ones_like(LENGTHS)}
    suffix = torch.zeros_like(inputs["suffix_BAD"])
    assert torch.allclose(
        run(recalibrator, alone)[:, 0], run(recalibrator, alone | {"suffix_BAD": suffix})[:, 0], atol=1e-6
    )


def test_the_first_entry_sees_the_whole_question(recalibrator: Recalibrator, student: Any) -> None:
    """However long: a student with sliding windows has a Recalibrator without them."""
    length = 40
    prefix = torch.randn(1, length, student.config.hidden_size, requires_grad=True)
    reading = recalibrator(
        prefix,
        torch.tensor([length]),
        torch.randn(1, 2, TEACHER_WIDTH),
        torch.ones(1, 2, dtype=torch.bool),
        project_prefix=False,
    )
    reading.r_BAD[0, 0, 0].backward()
    assert prefix.grad is not None
    assert int(prefix.grad[0].any(dim=1).sum()) == length


def test_padding_reaches_nothing(recalibrator: Recalibrator, inputs: dict[str, torch.Tensor]) -> None:
    """Garbage in the padding, more padding, other company in the batch: the same r."""
    before = run(recalibrator, inputs)
    mask = inputs["suffix_mask_BA"]
    questions = torch.arange(int(LENGTHS.max()))[None] < LENGTHS[:, None]
    dirty = inputs | {
        "prefix_BQD": torch.where(questions[:, :, None], inputs["prefix_BQD"], 99.0),
        "suffix_BAD": torch.where(mask[:, :, None], inputs["suffix_BAD"], 99.0),
    }
    assert torch.allclose(before[mask], run(recalibrator, dirty)[mask], atol=1e-5)
    longer = dirty | {
        "prefix_BQD": torch.nn.functional.pad(dirty["prefix_BQD"], (0, 0, 0, 3), value=99.0),
        "suffix_BAD": torch.nn.functional.pad(dirty["suffix_BAD"], (0, 0, 0, 2), value=99.0),
        "suffix_mask_BA": torch.nn.functional.pad(mask, (0, 2)),
    }
    assert torch.allclose(before[mask], run(recalibrator, longer)[:, : mask.shape[1]][mask], atol=1e-5)
    for sample in range(3):
        question, answer = int(LENGTHS[sample]), int(ANSWERS[sample])
        alone = {
            "prefix_BQD": inputs["prefix_BQD"][sample : sample + 1, :question],
            "prefix_lengths_B": LENGTHS[sample : sample + 1],
            "suffix_BAD": inputs["suffix_BAD"][sample : sample + 1, :answer],
            "suffix_mask_BA": mask[sample : sample + 1, :answer],
        }
        assert torch.allclose(before[sample, :answer], run(recalibrator, alone)[0], atol=1e-5)


def test_positions_count_from_zero_without_gaps(
    recalibrator: Recalibrator, inputs: dict[str, torch.Tensor]
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    hook = recalibrator.rec_body.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    try:
        run(recalibrator, inputs)
    finally:
        hook.remove()
    length = int((LENGTHS + ANSWERS).max())
    assert seen[0]["position_ids"].tolist() == [list(range(length))] * 3
    assert seen[0]["attention_mask"].sum(1).tolist() == (LENGTHS + ANSWERS).tolist()


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_shape_follows_the_student(student: Any, blocks: int) -> None:
    module = Recalibrator(
        RecalibratorConfig(blocks=blocks), student_body=student, teacher_width=TEACHER_WIDTH
    )
    assert len(module.rec_body.layers) == blocks
    for mine, theirs in zip(module.rec_body.layers, [student.layers[0]] * blocks, strict=True):
        shapes = {name: parameter.shape for name, parameter in mine.named_parameters()}
        assert shapes == {name: parameter.shape for name, parameter in theirs.named_parameters()}
    names = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert names == {"rec_proj_pre", "rec_body", "rec_proj_post", "norm"}
    # Nothing in rec_body but its blocks: no embeddings, and no norm of the student's width after them.
    assert all(name.startswith("layers.") for name, _ in module.rec_body.named_parameters())
    assert len(student.layers) == 3 and hasattr(student, "embed_tokens")


def test_splice_puts_the_answer_right_behind_each_question() -> None:
    prefix = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [-1.0], [-1.0]]])
    suffix = torch.tensor([[[10.0], [-1.0]], [[20.0], [21.0]]])
    joined = splice(prefix, torch.tensor([3, 1]), suffix, length=4)[:, :, 0]
    assert joined[0].tolist() == [1.0, 2.0, 3.0, 10.0]
    assert joined[1, :3].tolist() == [4.0, 20.0, 21.0]
