"""Golden: every option of the Recalibrator and of the objective against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from genrecal.data.batch import PairedBatch
from genrecal.data.pair import PairedSample
from genrecal.models.recalibrator import RecalibratorConfig, copy_blocks
from genrecal.train.objective import Objective
from genrecal.train.reading import ReadingProbe
from tests.data.spellings import spelled
from tests.tiny import TinyData, TinyPair
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.option_parts import TERMS, expected, objective, recalibrators
from tests.train.reference_options import Options


@pytest.fixture(scope="module")
def parts(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    return make_parts(tiny_pair, tiny_data)


def aligned(parts: Parts, row: PairedSample) -> list[int]:
    """For each of the teacher's tokens the student's last one that ends no later, character by character."""
    ends = []
    for processor, tokens in (
        (parts.reader.student, row.student),
        (parts.reader.teachers[0], row.teachers[0]),
    ):
        said = spelled(processor.tokenizer, tokens.answer_ids[:-1].tolist())
        text = b"".join(said).decode()
        assert text.isascii()  # so that bytes are characters; tests/data/test_align.py has the others
        ends.append([len(b"".join(said[: place + 1])) for place in range(len(said))] + [len(text) + 1])
    own, other = ends
    return [max((place for place, end in enumerate(own) if end <= limit), default=-1) for limit in other]


CASES: dict[str, tuple[dict[str, Any], Options]] = {
    "paper": ({}, Options()),
    "embeddings": ({"answer_input": "embeddings"}, Options(answer_input="embeddings")),
    "delayed": ({"answer_delay": 1}, Options(delay=1)),
    "delayed far": ({"answer_delay": 30}, Options(delay=30)),
    "embeddings delayed": (
        {"answer_input": "embeddings", "answer_delay": 2},
        Options(answer_input="embeddings", delay=2),
    ),
    "no first token": ({"first_token": False}, Options(first_token=False)),
    "layers": ({"layers": (0.5, 1.0)}, Options(blocks=((1, 1), (None, None)))),
    "one layer": ({"layers": (0.5,)}, Options(blocks=((1, 1),))),
    "first layer": ({"layers": (0.0, 1.0)}, Options(blocks=((0, 0), (None, None)))),
    "projector": ({"question_projector": "separate"}, Options()),
    "rmsnorm": ({"norm": "rmsnorm"}, Options()),
    "blocks": ({"blocks": 1}, Options()),
    "aligned": ({"answer_input": "aligned"}, Options(answer_input="aligned")),
    "aligned layers": (
        {
            "answer_input": "aligned",
            "layers": (0.5, 1.0),
            "question_projector": "separate",
            "answer_delay": 1,
        },
        Options(answer_input="aligned", blocks=((1, 1), (None, None)), delay=1),
    ),
}


def with_alignment(parts: Parts, row: PairedSample, options: Options) -> Options:
    if options.answer_input != "aligned":
        return options
    return Options(
        answer_input="embeddings",
        aligned=aligned(parts, row),
        delay=options.delay,
        hidden=options.hidden,
        blocks=options.blocks,
        first_token=options.first_token,
    )


@pytest.mark.parametrize("case", CASES)
def test_terms_equal_the_reference(parts: Parts, case: str) -> None:
    settings, options = CASES[case]
    shape = RecalibratorConfig(**{name: value for name, value in settings.items() if name != "first_token"})
    made = recalibrators(parts, shape)
    with torch.no_grad():
        found = objective(parts, made, **settings)(parts.batch()).terms
        rows = [expected(parts, made, row, with_alignment(parts, row, options)) for row in parts.rows]
    for name in TERMS:
        assert float(found[name]) == pytest.approx(sum(float(row[name]) for row in rows), rel=1e-5), name


def test_no_two_options_come_to_the_same(parts: Parts) -> None:
    """So that none of the comparisons above could hold by accident."""
    found = {}
    for case, (settings, _) in CASES.items():
        shape = RecalibratorConfig(
            **{name: value for name, value in settings.items() if name != "first_token"}
        )
        made = recalibrators(parts, shape)
        with torch.no_grad():
            terms = objective(parts, made, **settings)(parts.batch()).terms
        # A projector of its own shows in Algorithm 2 alone.
        found[case] = [float(terms[name]) for name in ("kl", "reg_kl")]
    assert len({tuple(round(value, 2) for value in values) for values in found.values()}) == len(CASES)


def test_first_tokens_are_no_targets(parts: Parts) -> None:
    """Nor do they count; their KL is not taken, but the answer that follows is read as before."""
    made = recalibrators(parts, RecalibratorConfig())
    batch = parts.batch()
    counts = objective(parts, made, first_token=False).counts(batch)
    answers = sum(len(row.teachers[0].answer_ids) for row in parts.rows)
    assert counts["aligned_tokens"] == answers - len(parts.rows)
    assert objective(parts, made).counts(batch)["aligned_tokens"] == answers


def test_aligned_reads_the_students_last_finished_token(parts: Parts) -> None:
    made = recalibrators(parts, RecalibratorConfig())
    batch = parts.batch()
    source = objective(parts, made, answer_input="aligned").sources[0]
    marks = torch.arange(batch.student.input_ids_BS.numel(), dtype=torch.float32) + 1
    z_BSD = marks.reshape(*batch.student.input_ids_BS.shape, 1)
    found = source.read_student(z_BSD, batch.student, batch.teachers[0]).answer_BAD[:, :, 0]
    indices = [aligned(parts, row) for row in parts.rows]
    for place, (row, index) in enumerate(zip(parts.rows, indices, strict=True)):
        start = len(row.student.question_ids)
        assert found[place, : len(index)].tolist() == [
            float(z_BSD[place, start + one, 0]) if one >= 0 else 0.0 for one in index
        ]
    assert any(index != list(range(len(index))) for index in indices)
    # Before the student has finished a token there is nothing to read.
    late = replace(batch.student, answer_ends_BA=batch.student.answer_ends_BA + 100)
    none = source.read_student(z_BSD, late, batch.teachers[0]).answer_BAD
    assert not none[batch.teachers[0].answer_mask_BA].any()


def hidden_places(objective: Objective, batch: PairedBatch, seed: int) -> torch.Tensor:
    """Bool, [B, A]: the places whose answer input is zero throughout."""
    torch.manual_seed(seed)
    teacher = objective.sources[0].read_teacher(
        batch.teachers[0], torch.ones(len(batch.ids), dtype=torch.bool)
    )
    zeros = [(part == 0).all(-1) for part in teacher.answer_input_BAD]
    assert all(torch.equal(zeros[0], other) for other in zeros)  # every depth hides the same
    return zeros[0]


def test_hidden_positions_are_zero_and_the_terms_are_theirs(parts: Parts) -> None:
    settings: dict[str, Any] = {"answer_dropout": 0.5, "layers": (0.5, 1.0)}
    made = recalibrators(parts, RecalibratorConfig(**settings))
    dropping, batch = objective(parts, made, **settings), parts.batch()
    assert not hidden_places(dropping, batch, 3).any()  # evaluation hides nothing
    dropping.train()
    assert not dropping.sources[0].teacher.training
    hidden_BA = hidden_places(dropping, batch, 3)
    shown = hidden_BA[batch.teachers[0].answer_mask_BA].float().mean()
    assert 0.2 < float(shown) < 0.8
    torch.manual_seed(3)
    with torch.no_grad():
        found = dropping(batch).terms
    rows = [
        expected(
            parts,
            made,
            row,
            Options(hidden=set(hidden_BA[place].nonzero()[:, 0].tolist()), blocks=((1, 1), (None, None))),
        )
        for place, row in enumerate(parts.rows)
    ]
    for name in TERMS:
        assert float(found[name]) == pytest.approx(sum(float(row[name]) for row in rows), rel=1e-5), name
    assert not torch.equal(hidden_BA, hidden_places(dropping, batch, 4))


@pytest.mark.parametrize("answer_input", ["features", "aligned"])
def test_a_probed_step_hides_what_an_unprobed_one_hides(parts: Parts, answer_input: str) -> None:
    """And takes the same gradient, at every depth."""
    settings: dict[str, Any] = {"answer_dropout": 0.4, "layers": (0.5, 1.0), "answer_input": answer_input}
    made = recalibrators(parts, RecalibratorConfig(**settings))
    dropping = objective(parts, made, losses=("align", "sft"), **settings).train()
    found = []
    parts.student.requires_grad_(True)
    try:
        for probe in (None, ReadingProbe()):
            torch.manual_seed(7)
            total, terms = dropping(parts.batch(), {"ar": 1.0, "kl": 1.0, "sft": 1.0}, probe)
            weights = [*dropping.sources[0].recalibrators.parameters(), *parts.student.parameters()]
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
            found.append(({name: float(value) for name, value in terms.items()}, gradients))
        assert probe is not None and probe.sums["distill_later_sq"] > 0 and probe.sums["first_tokens"] > 0
    finally:
        parts.student.requires_grad_(False)
    (terms, unprobed), (probed_terms, probed) = found
    assert probed_terms == pytest.approx(terms, rel=1e-6)
    scale = max(float(one.abs().max()) for one in unprobed if one is not None)
    for one, other in zip(unprobed, probed, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-4, atol=1e-6 * scale)


def test_aligned_answers_carry_gradient_to_the_students_answer(parts: Parts) -> None:
    """The features that the student's own answers are read from; with the teacher's alone they get none."""
    batch = parts.batch().student
    for answer_input, reached in (("aligned", True), ("embeddings", False)):
        made = recalibrators(parts, RecalibratorConfig(answer_input=answer_input))
        one = objective(parts, made, losses=("align",), answer_input=answer_input)
        z_BSD = torch.randn(*batch.input_ids_BS.shape, parts.student.config.get_text_config().hidden_size)
        z_BSD.requires_grad_(True)
        total, _ = one.sources[0].recalibrated_losses(
            [z_BSD],
            batch,
            parts.batch().teachers[0],
            torch.ones(len(parts.rows), dtype=torch.bool),
            regularize=False,
            scales={"ar": 1.0, "kl": 1.0},
        )
        (gradient,) = torch.autograd.grad(total, z_BSD)
        answers = gradient[0, int(batch.question_lengths_B[0]) :]
        assert bool(answers.abs().sum() > 0) == reached
        assert gradient[0, : int(batch.question_lengths_B[0])].abs().sum() > 0


def test_blocks_start_as_copies_of_the_students(parts: Parts) -> None:
    for blocks in (1, 2, 3):
        (made,) = recalibrators(parts, RecalibratorConfig(blocks=blocks))
        others = {name: value.clone() for name, value in made.state_dict().items() if "rec_body" not in name}
        third = {name: value.clone() for name, value in made.rec_body.layers[2:].state_dict().items()}
        copy_blocks(made, parts.student.get_decoder())
        for own, given in zip(made.rec_body.layers, parts.student.get_decoder().layers, strict=False):
            copied = given.state_dict()
            assert own.state_dict().keys() == copied.keys()
            assert all(torch.equal(value, copied[name]) for name, value in own.state_dict().items())
        now = made.state_dict()
        assert all(torch.equal(value, now[name]) for name, value in others.items())
        # The student has two; what it cannot give stays fresh.
        now = made.rec_body.layers[2:].state_dict()
        assert all(torch.equal(value, now[name]) for name, value in third.items())
