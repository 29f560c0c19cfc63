"""A frozen teacher's features in place of its forward pass: as they lie on disk, and in a batch.

int8 is absmax quantization: a block of up to 64 neighbours of a vector shares one scale. Features have a few
very large entries, always at the same places of the vector; with one scale for all of it, those would take
the precision of all others. bf16 and fp32 are stored as they are.

Shapes: N positions of a sample, L depths, D the teacher's hidden size, K blocks of a vector, B samples, A / Q
positions of the longest answer and question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

FeatureType = Literal["bf16", "int8", "fp32"]
BLOCK = 64
PLAIN_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which sample a row of a batch is, for those who record its features."""

    key: int  # 64 bits of what is asked and answered
    inputs: int  # 64 bits of the tokens and pixels that the teacher reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Vectors in a FeatureType."""

    values: torch.Tensor  # [..., L, D]
    scales: torch.Tensor | None = None  # [..., L, K] fp16, of int8 values

    def to(self, device: torch.device) -> Packed:
        scales = None if self.scales is None else self.scales.to(device)
        return Packed(values=self.values.to(device), scales=scales)

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The vectors, [..., L, D]."""
        if self.scales is None:
            return self.values.to(dtype)
        blocks = self.values.unflatten(-1, (self.scales.shape[-1], -1)).float()
        return (blocks * self.scales[..., None].float()).flatten(-2).to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFeatures:
    """What a teacher's forward pass over one sample would give."""

    answer: Packed  # [A, L, D]: the positions that predict the answer, the last question position first
    question: Packed | None  # [Q, L, D], where they are read
    question_length: int  # Q


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFeatures:
    """The same of a batch, padded with zeros; a list has one entry for each depth."""

    answer_BALD: Packed
    question_BQLD: Packed | None

    def to(self, device: torch.device) -> BatchFeatures:
        question = None if self.question_BQLD is None else self.question_BQLD.to(device)
        return BatchFeatures(answer_BALD=self.answer_BALD.to(device), question_BQLD=question)

    def predicting(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The features that predict the answer's tokens, [B, A, D] (`vlm.py::predicting_features`)."""
        return list(self.answer_BALD.unpacked(dtype).unbind(2))

    def answer(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The features at the answer's own positions, [B, A, D] (`vlm.py::answer_features`).

        Zero at the last one, which is not stored: it predicts no token, and what reads it, the Recalibrator,
        is causal, so no target depends on it.
        """
        return [torch.nn.functional.pad(z_BAD[:, 1:], (0, 0, 0, 1)) for z_BAD in self.predicting(dtype)]

    def question(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The features of the question, [B, Q, D]; an empty list where they were not read."""
        return [] if self.question_BQLD is None else list(self.question_BQLD.unpacked(dtype).unbind(2))


def pack(z: torch.Tensor, kind: FeatureType) -> Packed:
    """`z`, [..., L, D], as `kind` stores it."""
    if kind != "int8":
        return Packed(values=z.to(PLAIN_TYPES[kind]))
    width = z.shape[-1]
    block = next(size for size in range(BLOCK, 0, -1) if width % size == 0)
    blocks = z.float().unflatten(-1, (-1, block))
    # Rounded before it is used, so that the rounding costs nothing.
    scales = (blocks.abs().amax(-1) / 127).to(torch.float16)
    divisors = torch.where(scales > 0, scales.float(), torch.inf)[..., None]
    values = (blocks / divisors).round().clamp(-127, 127).to(torch.int8)
    return Packed(values=values.flatten(-2), scales=scales)


def zeros(shape: Sequence[int], kind: FeatureType) -> Packed:
    """Features of a sample that this teacher does not teach: no loss looks at them."""
    return pack(torch.zeros(*shape), kind)


def pad_features(rows: Sequence[SampleFeatures]) -> BatchFeatures:
    """The rows as one batch; with question features where all of them have theirs."""
    questions = [row.question for row in rows if row.question is not None]
    return BatchFeatures(
        answer_BALD=_padded([row.answer for row in rows]),
        question_BQLD=_padded(questions) if len(questions) == len(rows) else None,
    )


def _padded(rows: Sequence[Packed]) -> Packed:
    pad = torch.nn.utils.rnn.pad_sequence
    scales = [row.scales for row in rows if row.scales is not None]
    return Packed(
        values=pad([row.values for row in rows], batch_first=True),
        scales=pad(scales, batch_first=True) if scales else None,
    )
