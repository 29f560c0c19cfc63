"""Golden: every term of Algorithms 1 to 3 against the float64 reference, on a padded, mixed batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genrecal.data.batch import PairedBatch
from genrecal.models.recalibrator import Reading
from genrecal.models.vlm import question_features
from genrecal.train.objective import Objective
from genrecal.train.reading import ReadingProbe, reading_metrics
from genrecal.train.recalibrated import TeacherReading
from tests.tiny import TinyData, TinyPair
from tests.train import reference
from tests.train.algorithm_parts import Parts, make_parts, sides

TERMS = {"align": ("ar", "kl"), "regularize": ("reg_ar", "reg_kl"), "sft": ("sft",)}
ALL = {"ar": 1.0, "kl": 1.0, "sft": 1.0}
# What a stage follows without training on it.
FOLLOWED = {
    ("align", "regularize"): {"sft", "teacher_ar"},
    ("align", "sft"): {"teacher_ar"},
    ("sft",): set(),
}


def read_teacher(objective: Objective, batch: PairedBatch) -> TeacherReading:
    return objective.sources[0].read_teacher(batch.teachers[0], torch.ones(len(batch.ids), dtype=torch.bool))


@pytest.fixture(scope="module")
def parts(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    return make_parts(tiny_pair, tiny_data)


def test_the_batch_is_mixed(parts: Parts) -> None:
    batch = parts.batch()
    for side in (batch.student, batch.teachers[0]):
        assert len(set(side.question_lengths_B.tolist())) > 2
        assert len(set(side.answer_mask_BA.sum(1).tolist())) > 2
    images = [len(row.student.vision.get("image_grid_thw", ())) for row in parts.rows]
    assert sorted(images) == [0, 1, 1, 1, 2]
    assert batch.student.answer_tokens != batch.teachers[0].answer_tokens  # two vocabularies


@pytest.mark.parametrize("answer_input", ["features", "embeddings"])
def test_terms_equal_the_reference(parts: Parts, answer_input: str) -> None:
    with torch.no_grad():
        terms = parts.objective("align", "regularize", "sft", answer_input=answer_input)(parts.batch()).terms
        expected = [parts.reference(row, answer_input=answer_input) for row in parts.rows]
    assert set(terms) == {"ar", "kl", "reg_ar", "reg_kl", "sft", "teacher_ar"}
    for name, value in terms.items():
        total = sum(float(getattr(one, name).sum()) for one in expected)
        assert float(value) == pytest.approx(total, rel=1e-5), name


def test_every_sample_alone_equals_the_reference(parts: Parts) -> None:
    objective = parts.objective("align", "regularize", "sft")
    for row in parts.rows:
        with torch.no_grad():
            terms = objective(parts.batch((row,))).terms
            expected = parts.reference(row, answer_input="features")
        for name, value in terms.items():
            assert float(value) == pytest.approx(float(getattr(expected, name).sum()), rel=1e-5), name


def test_a_blank_image_in_a_batch_of_text_moves_nothing(parts: Parts) -> None:
    """The batch runs through the vision encoders, for the sake of the other ranks, and no loss sees it."""
    batch = parts.batch(parts.text_rows)
    assert batch.student.vision and batch.teachers[0].vision
    with torch.no_grad():
        terms = parts.objective("align", "regularize", "sft")(batch).terms
        expected = [parts.reference(row, answer_input="features") for row in parts.text_rows]
    for name, value in terms.items():
        total = sum(float(getattr(one, name).sum()) for one in expected)
        assert float(value) == pytest.approx(total, rel=1e-5), name


@pytest.mark.parametrize("losses", [("align", "regularize"), ("align", "sft"), ("sft",)])
def test_a_stage_computes_its_own_terms_and_sft(parts: Parts, losses: tuple[str, ...]) -> None:
    with torch.no_grad():
        terms = parts.objective(*losses)(parts.batch()).terms
    assert set(terms) == {name for loss in losses for name in TERMS[loss]} | FOLLOWED[losses]


def test_the_first_kl_target_reads_the_teachers_last_question_feature(parts: Parts) -> None:
    batch = parts.batch()
    z_TD = read_teacher(parts.objective("align"), batch).z_predict_TD
    target_TV = parts.teacher.get_output_embeddings()(z_TD)
    firsts = torch.cat([torch.tensor([0]), batch.teachers[0].answer_mask_BA.sum(1).cumsum(0)[:-1]])
    for number, row in zip(firsts, parts.rows, strict=True):
        with torch.no_grad():
            z_ND = reference.vlm_body(parts.teacher64, sides(row.teachers[0]))
            last = z_ND[len(row.teachers[0].question_ids) - 1 :][:1]
            expected = reference.head(parts.teacher64, last)[0]
        assert torch.allclose(target_TV[number].double(), expected, atol=1e-5)


def test_only_the_teachers_answer_passes_rec_proj_pre_in_the_main_branch(parts: Parts) -> None:
    seen: list[torch.Tensor] = []
    hook = parts.recalibrator.rec_proj_pre.register_forward_hook(
        lambda module, inputs, out: seen.append(inputs[0])
    )
    try:
        objective = parts.objective("align", "regularize")
        batch = parts.batch()
        with torch.no_grad():
            objective(batch)
            teacher = read_teacher(objective, batch)
    finally:
        hook.remove()
    main, regularisation = seen
    (answer_BAD,), (question_BQD,) = teacher.answer_input_BAD, teacher.z_q_BQD
    assert torch.equal(main, answer_BAD)
    # Algorithm 2: the teacher's question features go through it as well.
    assert torch.equal(regularisation, torch.cat([question_BQD, answer_BAD], 1))


def test_probed_and_unprobed_steps_take_the_same_gradient(parts: Parts) -> None:
    gradients = []
    for probe in (None, ReadingProbe()):
        parts.recalibrator.zero_grad()
        parts.student.requires_grad_(True)
        parts.student.zero_grad()
        parts.objective("align", "sft")(parts.batch(), ALL, probe).total.backward()
        modules = (parts.recalibrator, parts.student)
        gradients.append([p.grad for module in modules for p in module.parameters() if p.grad is not None])
    parts.student.requires_grad_(False)
    assert len(gradients[0]) == len(gradients[1])
    scale = max(float(gradient.abs().max()) for gradient in gradients[0])
    for unprobed, probed in zip(*gradients, strict=True):
        assert torch.allclose(unprobed, probed, rtol=1e-4, atol=1e-6 * scale)


def test_reading_figures_equal_the_reference(parts: Parts) -> None:
    """Gradient norms by autograd through the reference; KL rises with the neighbour's z_q in it."""
    batch, probe = parts.batch(), ReadingProbe()
    tokens_l, tokens_s = batch.teachers[0].answer_tokens, batch.student.answer_tokens
    scales = {"ar": 1 / tokens_l, "kl": 1 / tokens_l, "sft": 1 / tokens_s}
    parts.objective("align", "regularize")(batch, scales, probe).total.backward()
    found = reading_metrics(probe.sums, ranks=1, distils=True)

    first_sq = later_sq = sft_sq = rise_first = rise_later = 0.0
    features = [reference.vlm_body(parts.student64, sides(row.student)).detach() for row in parts.rows]
    for number, row in enumerate(parts.rows):
        count = len(row.student.question_ids)
        z_s = features[number].clone().requires_grad_(True)
        z_q = z_s[:count].detach().requires_grad_(True)
        terms64 = parts.reference(row, answer_input="features", z_s=z_s, z_q=z_q)
        distill = (terms64.ar + terms64.kl) / tokens_l
        (first,) = torch.autograd.grad(distill[0], z_q, retain_graph=True)
        (later,) = torch.autograd.grad(distill[1:].sum(), z_q)
        (sft,) = torch.autograd.grad(terms64.sft.sum() / tokens_s, z_s)
        first_sq, later_sq = first_sq + float((first**2).sum()), later_sq + float((later**2).sum())
        sft_sq += float((sft[:count] ** 2).sum())
        other = parts.rows[number - 1]
        z_other = features[number - 1][: len(other.student.question_ids)]
        with torch.no_grad():
            shuffled = parts.reference(row, answer_input="features", z_s=z_s, z_q=z_other).kl - terms64.kl
        rise_first, rise_later = rise_first + float(shuffled[0]), rise_later + float(shuffled[1:].sum())
    assert found == pytest.approx(
        {
            "grad_sft": sft_sq**0.5,
            "grad_distill": (first_sq + later_sq) ** 0.5,
            "grad_distill_first": first_sq**0.5,
            "grad_distill_later": later_sq**0.5,
            "kl_rise_first": rise_first / len(parts.rows),
            "kl_rise_later": rise_later / (tokens_l - len(parts.rows)),
        },
        rel=1e-4,
        abs=1e-6,
    )
    assert min(found["grad_distill_first"], found["grad_distill_later"], found["grad_sft"]) > 1e-3
    assert max(abs(found["kl_rise_first"]), abs(found["kl_rise_later"])) > 1e-3


def test_detached_question_features_have_no_distillation_gradient(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = ReadingProbe()
    monkeypatch.setattr(
        "genrecal.train.recalibrated.question_features", lambda z, batch: question_features(z, batch).detach()
    )
    parts.objective("align", "regularize")(parts.batch(), ALL, probe).total.backward()
    found = reading_metrics(probe.sums, ranks=1, distils=True)
    assert [found[f"grad_distill{part}"] for part in ("", "_first", "_later")] == [0.0, 0.0, 0.0]
    assert found["grad_sft"] > 0  # the probe did measure


class Deaf(torch.nn.Module):
    """Says the same at every position, whatever the student's question features are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.r_D = torch.nn.Parameter(torch.linspace(-1, 1, width))

    def forward(
        self, prefix: torch.Tensor, lengths: torch.Tensor, suffix: torch.Tensor, mask: torch.Tensor, **_: Any
    ) -> Reading:
        return Reading(hidden_BND=prefix, r_BAD=self.r_D.expand(*suffix.shape[:2], -1))


def test_a_recalibrator_that_ignores_the_student_has_no_kl_rise(parts: Parts) -> None:
    probe = ReadingProbe()
    deaf = Deaf(parts.teacher.config.get_text_config().hidden_size)
    parts.objective("align", recalibrator=deaf)(parts.batch(), ALL, probe).total.backward()
    found = reading_metrics(probe.sums, ranks=1, distils=True)
    assert found["kl_rise_first"] == found["kl_rise_later"] == found["grad_distill"] == 0.0
    assert probe.sums["first_tokens"] == len(parts.rows)
