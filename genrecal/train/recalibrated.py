"""GenRecal's losses: Algorithms 1 to 3 of the paper (Appendix E), line by line.

    z_q, z_a of the teacher          read_teacher    line 2
    r = Recalibrator([z_q, z_a])     recalibrate     line 4 (main), line 3 of Algorithm 2
    CE, KL by the teacher's head     _losses         lines 5 to 7

Shapes: B samples, S positions of one VLM's sequence, Q / A longest question and answer, T answer tokens of
the batch, D_s / D_l hidden sizes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from genrecal.data.align import last_complete
from genrecal.data.batch import Batch
from genrecal.models.recalibrator import Reading, Recalibrator, RecalibratorConfig
from genrecal.models.vlm import answer_features, layer_features, predicting_features, question_features
from genrecal.train.losses import answer_cross_entropy, teacher_divergence
from genrecal.train.reading import ReadingProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherReading:
    """What one teacher gives to a batch, without gradient; a list has one entry for each depth."""

    z_q_BQD: list[torch.Tensor]
    answer_input_BAD: list[torch.Tensor]
    logits_TV: torch.Tensor  # the KL target: head_l(z) at the predicting positions of the targets
    targets_BA: torch.Tensor  # bool: the answer tokens that CE and KL are taken at


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentReading:
    """What the Recalibrator reads of the student at one depth."""

    z_q_BQD: torch.Tensor
    lengths_B: torch.Tensor
    answer_BAD: torch.Tensor | None  # the student's answer features at the teacher's answer positions

    def of_another_sample(self) -> StudentReading:
        """Every sample is given the features of another one of the batch."""
        answer = None if self.answer_BAD is None else self.answer_BAD.roll(1, 0)
        return StudentReading(
            z_q_BQD=self.z_q_BQD.roll(1, 0), lengths_B=self.lengths_B.roll(1, 0), answer_BAD=answer
        )

    def through(self, watch: Any) -> StudentReading:
        """The same with every tensor that carries a gradient passed through `watch`."""
        answer = None if self.answer_BAD is None else watch(self.answer_BAD)
        return replace(self, z_q_BQD=watch(self.z_q_BQD), answer_BAD=answer)


class Source(nn.Module):
    """A teacher, and the Recalibrator for each depth that it is read at (none for comparison methods)."""

    def __init__(
        self,
        teacher: Any,
        recalibrators: Sequence[Recalibrator] = (),
        *,
        config: RecalibratorConfig | None = None,
        first_token: bool = True,
    ) -> None:
        super().__init__()
        self.teacher, self.recalibrators = teacher, nn.ModuleList(recalibrators)
        self.config, self.first_token = config or RecalibratorConfig(), first_token

    def recalibrated_terms(
        self,
        student_BSD: Sequence[torch.Tensor],
        batch_s: Batch,
        batch_l: Batch,
        routed_B: torch.Tensor,
        *,
        regularize: bool,
        probe: ReadingProbe | None = None,
    ) -> dict[str, torch.Tensor]:
        """Sums of ar, kl and, with `regularize`, reg_ar, reg_kl; and teacher_ar, which nothing trains on.

        Args:
            student_BSD: the student's features at each recalibrated depth.
            batch_s: the samples as the student reads them.
            batch_l: the samples as this teacher reads them.
            routed_B: bool, the samples that this teacher teaches.
            regularize: whether Algorithm 2 is taken too.
            probe: when given, it measures how much the Recalibrator reads the student.
        """
        teacher = self.read_teacher(batch_l, routed_B)
        labels_T = batch_l.answer_ids_BA[teacher.targets_BA]
        terms: dict[str, torch.Tensor] = {
            "teacher_ar": answer_cross_entropy(teacher.logits_TV, labels_T).sum()
        }

        def add(new: dict[str, torch.Tensor]) -> None:
            for name, value in new.items():
                value = value / len(self.recalibrators)  # depths share one target: their mean
                terms[name] = terms[name] + value if name in terms else value

        for depth, z_s_BSD in enumerate(student_BSD):
            student = self.read_student(z_s_BSD, batch_s, batch_l)

            def losses(student: StudentReading, depth: int = depth) -> tuple[torch.Tensor, torch.Tensor]:
                return self._losses(student, teacher, batch_l, depth, project_prefix=False)

            if probe is not None:
                add(probe.align(losses, student, teacher.targets_BA))
            else:
                ar_T, kl_T = losses(student)
                add({"ar": ar_T.sum(), "kl": kl_T.sum()})
            if regularize:
                # Algorithm 2: the teacher's question takes the student's place, through rec_proj_pre
                own = StudentReading(
                    z_q_BQD=teacher.z_q_BQD[depth], lengths_B=batch_l.question_lengths_B, answer_BAD=None
                )
                ar_T, kl_T = self._losses(own, teacher, batch_l, depth, project_prefix=True)
                add({"reg_ar": ar_T.sum(), "reg_kl": kl_T.sum()})
        return terms

    def read_student(self, z_BSD: torch.Tensor, batch_s: Batch, batch_l: Batch) -> StudentReading:
        """The student's question features, as they are (Algorithms 1 and 3, line 4)."""
        answer_BAD = None
        if self.config.answer_input == "aligned":
            z_a_BCD = answer_features(z_BSD, batch_s)
            index_BA = last_complete(batch_l.answer_ends_BA, batch_s.answer_ends_BA)
            index_BA = index_BA.clamp(max=z_a_BCD.shape[1] - 1)
            index = index_BA.clamp(min=0)[:, :, None].expand(-1, -1, z_a_BCD.shape[-1])
            answer_BAD = z_a_BCD.gather(1, index) * (index_BA >= 0)[:, :, None]
        return StudentReading(
            z_q_BQD=question_features(z_BSD, batch_s),
            lengths_B=batch_s.question_lengths_B,
            answer_BAD=answer_BAD,
        )

    @torch.no_grad()
    def read_teacher(self, batch: Batch, routed_B: torch.Tensor) -> TeacherReading:
        """Line 2 of every algorithm: [z_q, z_a] = VLM-body_l([q_l, a_l]), and the KL target."""
        *features, z_BSD = layer_features(self.teacher, batch, (*self.config.layers, 1.0))
        targets_BA = target_mask(batch, routed_B, first_token=self.first_token)
        z_predict_TD = predicting_features(z_BSD, batch)[targets_BA]
        return TeacherReading(
            z_q_BQD=[question_features(part, batch) for part in features],
            answer_input_BAD=self._answer_inputs(features, batch),
            logits_TV=self.teacher.get_output_embeddings()(z_predict_TD),
            targets_BA=targets_BA,
        )

    def _answer_inputs(self, features: Sequence[torch.Tensor], batch: Batch) -> list[torch.Tensor]:
        """The teacher's side of the answer, as `recalibrator.answer_input` has it, for each depth."""
        if self.config.answer_input == "features":
            inputs = [answer_features(part, batch) for part in features]
        else:
            inputs = [self.teacher.get_input_embeddings()(batch.answer_ids_BA)] * len(features)
        delay = self.config.answer_delay
        if delay:
            inputs = [nn.functional.pad(part, (0, 0, delay, 0))[:, : part.shape[1]] for part in inputs]
        if self.config.answer_dropout and self.training:
            # Drawn once for the batch, so that a probed step hides what an unprobed one hides.
            kept_BA = torch.rand(inputs[0].shape[:2], device=inputs[0].device) >= self.config.answer_dropout
            inputs = [part * kept_BA[:, :, None] for part in inputs]
        return inputs

    def _losses(
        self,
        student: StudentReading,
        teacher: TeacherReading,
        batch: Batch,
        depth: int,
        *,
        project_prefix: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CE and KL of every target, [T] each."""
        reading = self.recalibrate(student, teacher, batch, depth, project_prefix=project_prefix)
        logits_TV = self.teacher.get_output_embeddings()(reading.r_BAD[teacher.targets_BA])
        ar_T = answer_cross_entropy(logits_TV, batch.answer_ids_BA[teacher.targets_BA])
        kl_T = teacher_divergence(teacher.logits_TV, logits_TV)
        return ar_T, kl_T

    def recalibrate(
        self,
        student: StudentReading,
        teacher: TeacherReading,
        batch: Batch,
        depth: int,
        *,
        project_prefix: bool,
    ) -> Reading:
        """r = Recalibrator([z_q, answer input]) at one depth."""
        return self.recalibrators[depth](
            student.z_q_BQD,
            student.lengths_B,
            teacher.answer_input_BAD[depth],
            batch.answer_mask_BA,
            project_prefix=project_prefix,
            student_suffix_BAD=student.answer_BAD,
        )


def target_mask(batch: Batch, routed_B: torch.Tensor, *, first_token: bool) -> torch.Tensor:
    """Bool, [B, A]: the answer tokens that CE and KL through the Recalibrator are taken at."""
    targets_BA = batch.answer_mask_BA & routed_B[:, None].to(batch.answer_mask_BA.device)
    if not first_token:
        targets_BA = targets_BA.clone()
        targets_BA[:, 0] = False
    return targets_BA
