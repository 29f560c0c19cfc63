"""GenRecal's losses: Algorithms 1 to 3 of the paper (Appendix E), line by line.

    z_q, z_a of the teacher          read_teacher    line 2
    r = Recalibrator([z_q, z_a])     recalibrate     line 4 (main), line 3 of Algorithm 2
    CE, KL by the teacher's head     head.py         lines 5 to 7; both branches and the teacher in one pass

Shapes: B samples, S positions of one VLM's sequence, Q / A longest question and answer, T answer tokens of
the batch, D_s / D_l hidden sizes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from genrecal.data.align import last_complete
from genrecal.data.batch import Batch
from genrecal.data.features import BatchFeatures
from genrecal.models.recalibrator import Reading, Recalibrator, RecalibratorConfig
from genrecal.models.vlm import answer_features, layer_features, predicting_features, question_features
from genrecal.train.head import Branch, Head
from genrecal.train.losses import Losses
from genrecal.train.reading import ReadingProbe
from genrecal.train.recording import Recorder

# What goes through the teacher's head, and its CE and KL as terms; the shuffled branch is the probe's alone.
BRANCHES: dict[str, tuple[str, ...]] = {
    "main": ("ar", "kl"),
    "regularization": ("reg_ar", "reg_kl"),
    "shuffled": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherReading:
    """What one teacher gives to a batch, without gradient; a list has one entry for each depth."""

    z_q_BQD: list[torch.Tensor]
    answer_input_BAD: list[torch.Tensor]
    z_predict_TD: torch.Tensor  # head_l(z_predict) is the KL target: z one position before each target
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

    def detached(self) -> StudentReading:
        """The same without a gradient, to be kept beyond its pass."""
        answer = None if self.answer_BAD is None else self.answer_BAD.detach()
        return replace(self, z_q_BQD=self.z_q_BQD.detach(), answer_BAD=answer)

    def as_long_as(self, other: StudentReading) -> StudentReading:
        """The same with an answer of as many positions as the other's: cut off, or nothing after its end."""
        if self.answer_BAD is None or other.answer_BAD is None:
            return self
        count = other.answer_BAD.shape[1]
        return replace(self, answer_BAD=nn.functional.pad(self.answer_BAD, (0, 0, 0, count))[:, :count])

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
        self.recorder: Recorder | None = None  # of what a live teacher computes (teacher_cache.py)
        self.head = Head(teacher)
        self.config, self.first_token = config or RecalibratorConfig(), first_token

    def recalibrated_losses(
        self,
        student_BSD: Sequence[torch.Tensor],
        batch_s: Batch,
        batch_l: Batch,
        routed_B: torch.Tensor,
        *,
        regularize: bool,
        scales: Mapping[str, float],
        probe: ReadingProbe | None = None,
    ) -> Losses:
        """Sums of ar, kl and, with `regularize`, reg_ar, reg_kl; and teacher_ar, which nothing trains on.

        Args:
            student_BSD: the student's features at each recalibrated depth.
            batch_s: the samples as the student reads them.
            batch_l: the samples as this teacher reads them.
            routed_B: bool, the samples that this teacher teaches.
            regularize: whether Algorithm 2 is taken too.
            scales: what a term's sum is multiplied by in the total; terms that are not in it are followed.
            probe: when given, it measures how much the Recalibrator reads the student.
        """
        teacher = self.read_teacher(batch_l, routed_B)
        first_T = first_tokens(teacher.targets_BA)
        said: list[tuple[str, torch.Tensor]] = []  # a branch's kind and its r_TD
        for depth, z_s_BSD in enumerate(student_BSD):
            student = self.read_student(z_s_BSD, batch_s, batch_l)
            speak = partial(self._speak, teacher=teacher, batch=batch_l, depth=depth)
            if probe is None:
                said.append(("main", speak(student)))
            else:
                said.append(("main", probe.split(speak, student, first_T)))
                other = probe.another(student, key=(self, depth))
                if other is not None:
                    said.append(("shuffled", probe.shuffled(speak, other)))
            if regularize:
                # Algorithm 2: the teacher's question takes the student's place, through rec_proj_pre
                own = StudentReading(
                    z_q_BQD=teacher.z_q_BQD[depth], lengths_B=batch_l.question_lengths_B, answer_BAD=None
                )
                said.append(("regularization", speak(own, project_prefix=True)))
        found = self.head.losses(
            [self._branch(kind, r_TD, scales) for kind, r_TD in said],
            batch_l.answer_ids_BA[teacher.targets_BA],
            teacher.z_predict_TD,
        )
        terms = {"teacher_ar": found.teacher_ce_T.sum()}
        for (kind, _), ce_T, kl_T in zip(said, found.ce_NT, found.kl_NT, strict=True):
            for name, value_T in zip(BRANCHES[kind], (ce_T, kl_T), strict=False):
                # Depths share one target: the terms are their mean.
                terms[name] = terms.get(name, 0.0) + value_T.sum() / len(self.recalibrators)
            if kind == "main":
                right_T = kl_T
            elif probe is not None and kind == "shuffled":
                probe.add_rise(kl_T - right_T, first_T)
        return Losses(total=found.total, terms=terms)

    def _branch(self, kind: str, r_TD: torch.Tensor, scales: Mapping[str, float]) -> Branch:
        weights = [
            scales[name] / len(self.recalibrators) if name in scales else None for name in BRANCHES[kind]
        ]
        ce, kl = weights or (None, None)
        return Branch(z_TD=r_TD, ce=ce, kl=kl)

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
        """Line 2 of every algorithm: [z_q, z_a] = VLM-body_l([q_l, a_l]), and z of the KL target."""
        targets_BA = target_mask(batch, routed_B, first_token=self.first_token)
        depths = (*self.config.layers, 1.0)
        if batch.features is not None:
            stored = stored_features(
                batch.features, depths, self.teacher.get_output_embeddings().weight.dtype
            )
            z_q, z_a, z_predict_BAD = stored
        else:
            *features, z_BSD = layer_features(self.teacher, batch, depths)
            if self.recorder is not None:
                self.recorder.take(batch, dict(zip(depths, (*features, z_BSD), strict=True)), routed_B)
            z_q = [question_features(part, batch) for part in features]
            z_a = [answer_features(part, batch) for part in features]
            z_predict_BAD = predicting_features(z_BSD, batch)
        return TeacherReading(
            z_q_BQD=z_q,
            answer_input_BAD=self._answer_inputs(z_a, batch),
            z_predict_TD=z_predict_BAD[targets_BA],
            targets_BA=targets_BA,
        )

    def _answer_inputs(self, z_a_BAD: Sequence[torch.Tensor], batch: Batch) -> list[torch.Tensor]:
        """The teacher's side of the answer, as `recalibrator.answer_input` has it, for each depth."""
        if self.config.answer_input == "features":
            inputs = list(z_a_BAD)
        else:
            inputs = [self.teacher.get_input_embeddings()(batch.answer_ids_BA)] * len(z_a_BAD)
        delay = self.config.answer_delay
        if delay:
            inputs = [nn.functional.pad(part, (0, 0, delay, 0))[:, : part.shape[1]] for part in inputs]
        if self.config.answer_dropout and self.training:
            # Drawn once for the batch, so that a probed step hides what an unprobed one hides.
            kept_BA = torch.rand(inputs[0].shape[:2], device=inputs[0].device) >= self.config.answer_dropout
            inputs = [part * kept_BA[:, :, None] for part in inputs]
        return inputs

    def _speak(
        self,
        student: StudentReading,
        *,
        teacher: TeacherReading,
        batch: Batch,
        depth: int,
        project_prefix: bool = False,
    ) -> torch.Tensor:
        """r at the targets, [T, D_l]."""
        reading = self.recalibrate(student, teacher, batch, depth, project_prefix=project_prefix)
        return reading.r_BAD[teacher.targets_BA]

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


def stored_features(
    features: BatchFeatures, depths: Sequence[float], dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """z_q and z_a at each of `depths` but the last one, and what predicts the answer at that, from a cache.

    It holds each depth once, ascending (`teacher_fingerprint.py::stored_depths`).
    """
    places = [sorted(set(depths)).index(depth) for depth in depths]
    question, answer, predicting = (
        part(dtype) for part in (features.question, features.answer, features.predicting)
    )
    z_q = [question[place] for place in places[:-1]] if question else []
    return z_q, [answer[place] for place in places[:-1]], predicting[places[-1]]


def target_mask(batch: Batch, routed_B: torch.Tensor, *, first_token: bool) -> torch.Tensor:
    """Bool, [B, A]: the answer tokens that CE and KL through the Recalibrator are taken at."""
    targets_BA = batch.answer_mask_BA & routed_B[:, None].to(batch.answer_mask_BA.device)
    if not first_token:
        targets_BA = targets_BA.clone()
        targets_BA[:, 0] = False
    return targets_BA


def first_tokens(targets_BA: torch.Tensor) -> torch.Tensor:
    """Bool, [T]: which of the targets are their answer's first token."""
    first_BA = torch.zeros_like(targets_BA)
    first_BA[:, 0] = True
    return first_BA[targets_BA]
