"""Paired samples as padded tensors, right-padded: positions 0..Q-1 the question, Q..Q+A-1 the answer.

A batch without any image gets a blank one behind the end of its first sample, where the attention mask is
zero and no loss looks. ZeRO-3 gathers a module's weights from all ranks when the module runs, so a rank whose
samples are text alone has to run the vision encoder as the others do.

Shapes: B samples, S tokens of the longest one, A tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from genrecal.data.pair import BlankImage, PairedSample, TokenizedSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch as one VLM reads it."""

    input_ids_BS: torch.Tensor
    attention_mask_BS: torch.Tensor
    question_lengths_B: torch.Tensor
    answer_ids_BA: torch.Tensor
    answer_mask_BA: torch.Tensor  # bool
    vision: dict[str, torch.Tensor]

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """On `device`, with the pixels in the model's `dtype`."""
        return Batch(
            input_ids_BS=self.input_ids_BS.to(device),
            attention_mask_BS=self.attention_mask_BS.to(device),
            question_lengths_B=self.question_lengths_B.to(device),
            answer_ids_BA=self.answer_ids_BA.to(device),
            answer_mask_BA=self.answer_mask_BA.to(device),
            vision={
                name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
                for name, value in self.vision.items()
            },
        )

    @property
    def answer_tokens(self) -> int:
        return int(self.answer_mask_BA.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedBatch:
    """The same samples for the student and, where the method has one, for the teacher."""

    ids: tuple[str, ...]
    student: Batch
    teacher: Batch | None

    def to(self, device: torch.device, dtype: torch.dtype) -> PairedBatch:
        teacher = self.teacher.to(device, dtype) if self.teacher is not None else None
        return PairedBatch(ids=self.ids, student=self.student.to(device, dtype), teacher=teacher)


def collate(
    rows: Sequence[PairedSample],
    *,
    student_padding: int,
    teacher_padding: int = 0,
    student_blank: BlankImage | None = None,
    teacher_blank: BlankImage | None = None,
) -> PairedBatch:
    """Pad `rows` into one PairedBatch with each VLM's padding token, and its blank image where none is."""
    teachers = [row.teacher for row in rows if row.teacher is not None]
    return PairedBatch(
        ids=tuple(row.id for row in rows),
        student=collate_one([row.student for row in rows], padding=student_padding, blank=student_blank),
        teacher=collate_one(teachers, padding=teacher_padding, blank=teacher_blank) if teachers else None,
    )


def collate_one(rows: Sequence[TokenizedSample], *, padding: int, blank: BlankImage | None = None) -> Batch:
    """Pad one VLM's sequences; pixels of all images follow each other in the order of the samples."""
    sequences = [torch.cat([row.question_ids, row.answer_ids]) for row in rows]
    answers = [row.answer_ids for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(ids) for ids in sequences]
    names = {name for row in rows for name in row.vision}
    vision = {
        name: torch.cat([row.vision[name] for row in rows if name in row.vision]) for name in sorted(names)
    }
    if not vision and blank is not None:
        sequences[0] = torch.cat([sequences[0], blank.ids])
        masks[0] = torch.cat([masks[0], torch.zeros_like(blank.ids)])
        vision = dict(blank.vision)
    return Batch(
        input_ids_BS=pad(sequences, batch_first=True, padding_value=padding),
        attention_mask_BS=pad(masks, batch_first=True),
        question_lengths_B=torch.tensor([len(row.question_ids) for row in rows]),
        answer_ids_BA=pad(answers, batch_first=True, padding_value=padding),
        answer_mask_BA=pad([torch.ones_like(ids, dtype=torch.bool) for ids in answers], batch_first=True),
        vision=vision,
    )
