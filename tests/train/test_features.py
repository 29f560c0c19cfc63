"""Golden: the averaged features of Figures 6 and 7 against the float64 reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genrecal.data.pair import PairedSample
from genrecal.models.recalibrator import Recalibrator, RecalibratorConfig
from genrecal.train.features import recalibrated_features
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from tests.tiny import TinyData, TinyPair
from tests.train import reference
from tests.train.algorithm_parts import Parts, enliven, make_parts, sides

CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "projector": {"question_projector": "separate"},
    "embeddings": {"answer_input": "embeddings", "answer_dropout": 0.5},
    "first depth": {"layers": (0.5, 1.0)},
}


@pytest.fixture(scope="module")
def parts(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    return make_parts(tiny_pair, tiny_data)


def make(parts: Parts, config: RecalibratorConfig) -> Objective:
    made = []
    for depth in range(len(config.layers)):
        torch.manual_seed(depth)
        one = Recalibrator(
            config,
            student_body=parts.student.get_decoder(),
            teacher_width=parts.teacher.config.get_text_config().hidden_size,
        )
        enliven(one, 5 + depth)
        made.append(one)
    source = Source(parts.teacher, made, config=config)
    return Objective(student=parts.student, sources=[source], losses=("align",))


def features(objective: Objective, *batches: Any) -> dict[str, torch.Tensor]:
    """The engine is asked for nothing but its module."""
    return recalibrated_features(SimpleNamespace(module=objective), list(batches))


def expected(parts: Parts, objective: Objective, row: PairedSample, case: str) -> dict[str, torch.Tensor]:
    recalibrator = objective.sources[0].recalibrators[0]
    student, teacher = sides(row.student), sides(row.teachers[0])

    def z(model64: Any, side: reference.Sides) -> torch.Tensor:
        # Both have two layers.
        return (
            reference.residual(model64, side, 1)
            if case == "first depth"
            else reference.vlm_body(model64, side)
        )

    z_s, z_l = z(parts.student64, student), z(parts.teacher64, teacher)
    question_s, question_l = z_s[: len(student.question)], z_l[: len(teacher.question)]
    answer = z_l[len(teacher.question) :]
    if case == "embeddings":
        answer = parts.teacher64.get_input_embeddings().weight[torch.tensor(teacher.answer)]
    answer = reference.linear(answer, recalibrator.rec_proj_pre)
    projector = recalibrator.rec_proj_question if case == "projector" else recalibrator.rec_proj_pre
    projected = reference.linear(question_l, projector)
    found = {"z_q_student": question_s.mean(0), "p_q_teacher": projected.mean(0)}
    for name, question in (("student", question_s), ("teacher", projected)):
        hidden = reference.rec_body(recalibrator, torch.cat([question, answer]))
        spoken = reference.speak(recalibrator, hidden)
        start = len(question)
        found[f"h_q_{name}"] = hidden[:start].mean(0)
        found[f"r_q_{name}"] = spoken[:start].mean(0)
        found[f"r_a_{name}"] = spoken[start - 1 : start - 1 + len(answer)].mean(0)
    return found


@pytest.mark.parametrize("case", CONFIGS)
def test_features_equal_the_reference(parts: Parts, case: str) -> None:
    """In evaluation, whatever is hidden in training; the mode of the objective stays what it was."""
    objective = make(parts, RecalibratorConfig(**CONFIGS[case])).train()
    found = features(objective, parts.batch(parts.rows[:2]), parts.batch(parts.rows[2:]))
    assert objective.training and objective.sources[0].training
    rows = []
    with torch.no_grad():
        rows = [expected(parts, objective, row, case) for row in parts.rows]
    assert found.keys() == rows[0].keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and not tensor.requires_grad
        stacked = torch.stack([row[name] for row in rows])
        assert torch.allclose(tensor.double(), stacked, atol=1e-5 * float(stacked.abs().max())), name


def test_aligned_answers_read_the_student(parts: Parts) -> None:
    """The student's own answer features are added to what the Recalibrator reads at the answer."""
    tensors = {}
    for answer_input in ("embeddings", "aligned"):
        objective = make(parts, RecalibratorConfig(answer_input=answer_input)).eval()
        tensors[answer_input] = features(objective, parts.batch())
    for name in tensors["aligned"]:
        same = torch.equal(tensors["aligned"][name], tensors["embeddings"][name])
        assert same == (name != "r_a_student"), name
