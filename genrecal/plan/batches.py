"""Micro-batches of given lengths, as training would make them of equal samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genrecal.data.batch import Batch, PairedBatch
from genrecal.data.inputs import join_vision
from genrecal.models.families import family_of
from genrecal.plan.images import image_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSizes:
    """One sample as one VLM reads it."""

    question_tokens: int  # of text
    answer_tokens: int
    tiles: int
    pixels: int | None = None


def batch_of(config: Any, sizes: SampleSizes, *, samples: int) -> Batch:
    """`samples` samples of these sizes; every position is real, none is padding."""
    image = image_tokens(config, tiles=sizes.tiles, pixels=sizes.pixels) if sizes.tiles else None
    text = _text_token(config)
    question = [*(image.ids if image else []), *[text] * sizes.question_tokens]
    answer = [text] * sizes.answer_tokens
    ids_S = torch.tensor(question + answer)
    answer_BA = torch.tensor(answer).expand(samples, -1).contiguous()
    types = {
        name: (ids_S == config.image_token_id).long().expand(samples, -1).contiguous()
        for name in family_of(config).token_inputs
    }
    return Batch(
        input_ids_BS=ids_S.expand(samples, -1).contiguous(),
        attention_mask_BS=torch.ones(samples, len(ids_S), dtype=torch.int64),
        question_lengths_B=torch.full((samples,), len(question)),
        answer_ids_BA=answer_BA,
        answer_mask_BA=torch.ones_like(answer_BA, dtype=torch.bool),
        answer_ends_BA=torch.arange(1, len(answer) + 1).expand(samples, -1).contiguous(),
        token_inputs=types,
        vision=join_vision([image.vision] * samples) if image else {},
    )


def paired_batch(student: Batch, teachers: Sequence[Batch], *, domain: str) -> PairedBatch:
    """The same samples for all models, of the domain `domain`."""
    samples = len(student.input_ids_BS)
    return PairedBatch(
        ids=tuple(str(number) for number in range(samples)),
        domains=(domain,) * samples,
        student=student,
        teachers=tuple(teachers),
    )


def _text_token(config: Any) -> int:
    """An id that stands for no image."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    taken = {getattr(config, name, None) for name in names}
    return next(token for token in range(config.get_text_config().vocab_size) if token not in taken)
