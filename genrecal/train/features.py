"""Features of a few question-answer pairs, before and after a stage, for the paper's Figures 6 and 7.

The number of tokens differs between the models, so positions are averaged, as in Figure 7(a). Every tensor
has a row for each pair; the first teacher's first Recalibrator is the one that is looked at.

    width D_s    z_q_student   the student's question features
                 p_q_teacher   the teacher's, through rec_proj_pre
                 h_q_student   rec_body's output at the student's question
                 h_q_teacher   rec_body's output at the teacher's question
    width D_l    r_q_student, r_q_teacher   what the Recalibrator would tell the head at those questions
                 r_a_student, r_a_teacher   what it tells it at the answer
"""

from __future__ import annotations

from typing import Any

import torch

from genrecal.data.batch import Batch, PairedBatch
from genrecal.models.recalibrator import Reading
from genrecal.models.vlm import layer_features
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source, StudentReading


@torch.no_grad()
def recalibrated_features(engine: Any, batches: list[PairedBatch]) -> dict[str, torch.Tensor]:
    """The tensors above, float32 on the CPU; every rank calls it with the same batches.

    Args:
        engine: around an Objective with a Recalibrator.
        batches: on the engine's device.
    """
    objective: Objective = engine.module
    was_training = objective.training
    objective.eval()
    rows = [_rows(objective, batch) for batch in batches]
    objective.train(was_training)
    return {name: torch.cat([row[name] for row in rows]).float().cpu().contiguous() for name in rows[0]}


def _rows(objective: Objective, batch: PairedBatch) -> dict[str, torch.Tensor]:
    source: Source = objective.sources[0]  # type: ignore[assignment]
    batch_s, batch_l = batch.student, batch.teachers[0]
    z_s_BSD = layer_features(objective.student, batch_s, source.config.layers[:1])[0]
    student = source.read_student(z_s_BSD, batch_s, batch_l)
    teacher = source.read_teacher(batch_l, torch.ones(len(batch.domains), dtype=torch.bool))
    own = StudentReading(z_q_BQD=teacher.z_q_BQD[0], lengths_B=batch_l.question_lengths_B, answer_BAD=None)
    recalibrator = source.recalibrators[0]
    projector = recalibrator.rec_proj_question or recalibrator.rec_proj_pre
    features = {
        "z_q_student": _mean(student.z_q_BQD, student.lengths_B),
        "p_q_teacher": _mean(projector(own.z_q_BQD), own.lengths_B),
    }
    for name, question, project in (("student", student, False), ("teacher", own, True)):
        reading = source.recalibrate(question, teacher, batch_l, 0, project_prefix=project)
        features |= _of_reading(name, reading, question, batch_l, recalibrator)
    return features


def _of_reading(
    name: str, reading: Reading, question: StudentReading, batch: Batch, recalibrator: Any
) -> dict[str, torch.Tensor]:
    answer_BA1 = batch.answer_mask_BA[:, :, None]
    return {
        f"h_q_{name}": _mean(reading.hidden_BND, question.lengths_B),
        f"r_q_{name}": _mean(recalibrator.speak(reading.hidden_BND), question.lengths_B),
        f"r_a_{name}": (reading.r_BAD * answer_BA1).sum(1) / answer_BA1.sum(1),
    }


def _mean(features_BND: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """The mean over each sample's first `lengths_B` positions, [B, D]."""
    positions_N = torch.arange(features_BND.shape[1], device=features_BND.device)
    mask_BN1 = (positions_N[None] < lengths_B[:, None])[:, :, None]
    return (features_BND * mask_BN1).sum(1) / mask_BN1.sum(1)
