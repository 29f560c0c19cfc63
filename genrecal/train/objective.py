"""The three models under one engine; `forward` is the stage's algorithm, line by line (paper, Appendix E).

Shapes: B samples, S positions of one VLM's sequence, Q / A longest question and answer, T answer tokens of
the batch, D_s / D_l hidden sizes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genrecal.data.batch import Batch, PairedBatch
from genrecal.models.recalibrator import Recalibrator
from genrecal.models.vlm import answer_features, body_features, predicting_features, question_features
from genrecal.train.losses import answer_cross_entropy, teacher_divergence
from genrecal.train.reading import ReadingProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherReading:
    """What the teacher gives to a batch, without gradient."""

    z_q_BQD: torch.Tensor
    z_a_BAD: torch.Tensor
    answer_input_BAD: torch.Tensor  # z_a, or the answer's token embeddings
    logits_TV: torch.Tensor  # the KL target: head_l(z) at the predicting positions


class Objective(nn.Module):
    """Teacher, student and Recalibrator; each is None where the stage does not use it."""

    def __init__(
        self,
        *,
        student: Any,
        teacher: Any | None,
        recalibrator: Recalibrator | None,
        losses: tuple[str, ...],
        answer_input: str,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.recalibrator = student, teacher, recalibrator
        self.losses, self.answer_input = losses, answer_input

    def forward(self, batch: PairedBatch, probe: ReadingProbe | None = None) -> dict[str, torch.Tensor]:
        """Loss terms as sums over the batch's answer tokens.

        Args:
            batch: on the engine's device.
            probe: when given, it measures whether the Recalibrator reads the student.

        Returns:
            The terms among ar, kl, reg_ar, reg_kl, sft; `sft` is there in every stage, as the paper's
            Figure 9 follows it while only the Recalibrator trains.
        """
        terms: dict[str, torch.Tensor] = {}
        z_s_BSD = body_features(self.student, batch.student)
        if probe is not None:
            z_s_BSD = probe.watchable(z_s_BSD)
        if "align" in self.losses:
            assert batch.teacher is not None
            teacher = self._read_teacher(batch.teacher)
            z_q_BQD = question_features(z_s_BSD, batch.student)
            lengths_B = batch.student.question_lengths_B
            if probe is not None:
                terms |= probe.align(self._align, z_q_BQD, lengths_B, teacher, batch.teacher)
            else:
                ar_T, kl_T = self._align(z_q_BQD, lengths_B, teacher, batch.teacher)
                terms |= {"ar": ar_T.sum(), "kl": kl_T.sum()}
            if "regularize" in self.losses:
                # Algorithm 2: the teacher's question takes the student's place, through rec_proj_pre
                ar_T, kl_T = self._recalibrated_losses(
                    teacher.z_q_BQD,
                    batch.teacher.question_lengths_B,
                    teacher,
                    batch.teacher,
                    project_prefix=True,
                )
                terms |= {"reg_ar": ar_T.sum(), "reg_kl": kl_T.sum()}
        if probe is not None:
            z_s_BSD = probe.watch_sft(z_s_BSD, batch.student)
        z_predict_TD = predicting_features(z_s_BSD, batch.student)[batch.student.answer_mask_BA]
        labels_T = batch.student.answer_ids_BA[batch.student.answer_mask_BA]
        logits_TV = self.student.get_output_embeddings()(z_predict_TD)
        terms["sft"] = answer_cross_entropy(logits_TV, labels_T).sum()
        return terms

    @torch.no_grad()
    def _read_teacher(self, batch: Batch) -> TeacherReading:
        """Line 2 of every algorithm: [z_q, z_a] = VLM-body_l([q_l, a_l]), and the KL target."""
        z_BSD = body_features(self.teacher, batch)
        z_a_BAD = answer_features(z_BSD, batch)
        if self.answer_input == "embeddings":
            answer_input_BAD = self.teacher.get_input_embeddings()(batch.answer_ids_BA)
        else:
            answer_input_BAD = z_a_BAD
        z_predict_TD = predicting_features(z_BSD, batch)[batch.answer_mask_BA]
        return TeacherReading(
            z_q_BQD=question_features(z_BSD, batch),
            z_a_BAD=z_a_BAD,
            answer_input_BAD=answer_input_BAD,
            logits_TV=self.teacher.get_output_embeddings()(z_predict_TD),
        )

    def _align(
        self, z_q_BQD: torch.Tensor, lengths_B: torch.Tensor, teacher: TeacherReading, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Algorithms 1 and 3, lines 4 to 7: the student's question features, as they are."""
        return self._recalibrated_losses(z_q_BQD, lengths_B, teacher, batch, project_prefix=False)

    def _recalibrated_losses(
        self,
        z_q_BQD: torch.Tensor,
        lengths_B: torch.Tensor,
        teacher: TeacherReading,
        batch: Batch,
        *,
        project_prefix: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CE and KL of every answer token, [T] each."""
        mask_BA = batch.answer_mask_BA
        r_BAD = self.recalibrator(
            z_q_BQD, lengths_B, teacher.answer_input_BAD, mask_BA, project_prefix=project_prefix
        )
        logits_TV = self.teacher.get_output_embeddings()(r_BAD[mask_BA])
        ar_T = answer_cross_entropy(logits_TV, batch.answer_ids_BA[mask_BA])
        kl_T = teacher_divergence(teacher.logits_TV, logits_TV)
        return ar_T, kl_T
