"""Paired samples as padded tensors, right-padded: positions 0..Q-1 the question, Q..Q+A-1 the answer.

A batch without any image gets a blank one behind the end of its shortest sample, where the attention mask is
zero and no loss looks. ZeRO-3 gathers a module's weights from all ranks when the module runs, so a rank whose
samples are text alone has to run the vision encoder as the others do. The row of a sample that was left out
has no answer (pair.py::absent_sample); where all rows are such ones, the batch has one answer position and no
answer.

Shapes: B samples, S tokens of the longest one, A tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from genrecal.data.features import BatchFeatures, Origin, pad_features
from genrecal.data.inputs import Prompt, join_vision
from genrecal.data.pair import PairedSample, TokenizedSample
from genrecal.data.quarantine import Quarantined

# Ends of padded answer positions: behind every answer.
NEVER = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch as one VLM reads it."""

    input_ids_BS: torch.Tensor
    attention_mask_BS: torch.Tensor
    question_lengths_B: torch.Tensor
    answer_ids_BA: torch.Tensor
    answer_mask_BA: torch.Tensor  # bool
    answer_ends_BA: torch.Tensor  # characters of the answer that are complete with each token
    token_inputs: dict[str, torch.Tensor]  # [B, S] each, what some families read beside the ids
    vision: dict[str, torch.Tensor]
    features: BatchFeatures | None = None  # in place of a forward pass: the ids are the answers' alone then
    origins: tuple[Origin | None, ...] = ()

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """On `device`, with the pixels in the model's `dtype`."""
        return Batch(
            input_ids_BS=self.input_ids_BS.to(device),
            attention_mask_BS=self.attention_mask_BS.to(device),
            question_lengths_B=self.question_lengths_B.to(device),
            answer_ids_BA=self.answer_ids_BA.to(device),
            answer_mask_BA=self.answer_mask_BA.to(device),
            answer_ends_BA=self.answer_ends_BA.to(device),
            token_inputs={name: value.to(device) for name, value in self.token_inputs.items()},
            vision={
                name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
                for name, value in self.vision.items()
            },
            features=None if self.features is None else self.features.to(device),
            origins=self.origins,
        )

    @property
    def answer_tokens(self) -> int:
        return int(self.answer_mask_BA.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedBatch:
    """The same samples for the student and for every teacher of the run."""

    ids: tuple[str, ...]  # of the samples that have an answer
    domains: tuple[str, ...]  # of all rows
    student: Batch
    teachers: tuple[Batch, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()  # what was left out of it

    def to(self, device: torch.device, dtype: torch.dtype) -> PairedBatch:
        return PairedBatch(
            ids=self.ids,
            domains=self.domains,
            student=self.student.to(device, dtype),
            teachers=tuple(teacher.to(device, dtype) for teacher in self.teachers),
            quarantined=self.quarantined,
        )


def collate(
    rows: Sequence[PairedSample],
    *,
    student_padding: int,
    teacher_paddings: Sequence[int] = (),
    student_blank: Prompt | None = None,
    teacher_blanks: Sequence[Prompt] = (),
) -> PairedBatch:
    """Pad `rows` into one PairedBatch with each VLM's padding token, and its blank image where none is."""
    return PairedBatch(
        ids=tuple(row.id for row in rows if row.answered),
        domains=tuple(row.domain for row in rows),
        student=collate_one([row.student for row in rows], padding=student_padding, blank=student_blank),
        teachers=tuple(
            collate_one([row.teachers[place] for row in rows], padding=padding, blank=blank)
            for place, (padding, blank) in enumerate(zip(teacher_paddings, teacher_blanks, strict=True))
        ),
    )


def collate_one(rows: Sequence[TokenizedSample], *, padding: int, blank: Prompt | None = None) -> Batch:
    """Pad one VLM's sequences; images of all samples follow each other in the order of the samples.

    Rows with features stand for themselves: nothing but their answers is padded, and no image is needed.
    """
    features = [row.features for row in rows if row.features is not None]
    if features:
        blank = None
    sequences = [torch.cat([row.question_ids, row.answer_ids]) for row in rows]
    answers = [row.answer_ids for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(ids) for ids in sequences]
    token_inputs = {name: [row.token_inputs[name] for row in rows] for name in rows[0].token_inputs}
    vision = join_vision([row.vision for row in rows])
    if not vision and blank is not None:
        place = min(range(len(rows)), key=lambda row: len(sequences[row]))
        for name, entries in token_inputs.items():
            # Of the answer's tokens, then of the blank image's: a blank image is an image like any other.
            zeros = entries[place].new_zeros(len(answers[place]))
            entries[place] = torch.cat([entries[place], zeros, blank.token_inputs[name]])
        sequences[place] = torch.cat([sequences[place], blank.ids])
        masks[place] = torch.cat([masks[place], torch.zeros_like(blank.ids)])
        vision = dict(blank.vision)
    length = max(len(ids) for ids in sequences)
    answer_masks = [torch.ones_like(ids, dtype=torch.bool) for ids in answers]
    ends = [row.answer_ends for row in rows]
    if not any(len(ids) for ids in answers):
        # One position that is no answer: losses look for a first one.
        answers[0] = answers[0].new_full((1,), padding)
        answer_masks[0] = answer_masks[0].new_zeros(1)
        ends[0] = ends[0].new_full((1,), NEVER)
    return Batch(
        input_ids_BS=pad(sequences, batch_first=True, padding_value=padding),
        attention_mask_BS=pad(masks, batch_first=True),
        question_lengths_B=torch.tensor([row.question_length for row in rows]),
        answer_ids_BA=pad(answers, batch_first=True, padding_value=padding),
        answer_mask_BA=pad(answer_masks, batch_first=True),
        answer_ends_BA=pad(ends, batch_first=True, padding_value=NEVER),
        token_inputs={
            name: torch.stack([nn.functional.pad(entry, (0, length - len(entry))) for entry in entries])
            for name, entries in token_inputs.items()
        },
        vision=vision,
        features=pad_features(features) if features else None,
        origins=tuple(row.origin for row in rows),
    )
