"""One sample as two token sequences: each VLM reads it through its own processor and chat template.

    Sample -> question ids (with the image tokens) + answer ids + pixel tensors, for teacher and student

The question ends where the model would start to generate; the answer is the text and the end-of-turn token.
They are tokenized apart, so that the border lies between two tokens in both vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import Sample
from genrecal.data.align import answer_tokens
from genrecal.data.inputs import answer_form, blank_prompt, encode_prompt, placeholders
from genrecal.data.llava import IMAGE_MARK


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """One sample as one VLM reads it."""

    question_ids: torch.Tensor  # [Q]
    token_inputs: dict[str, torch.Tensor]  # [Q] each (inputs.py)
    answer_ids: torch.Tensor  # [A], the last one ends the turn
    answer_ends: torch.Tensor  # [A], characters of the answer that are complete with each token (align.py)
    vision: dict[str, torch.Tensor]  # pixel_values and what goes with them; empty for text alone


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSample:
    """The same sample for the student and for every teacher of the run."""

    id: str
    domain: str
    student: TokenizedSample
    teachers: tuple[TokenizedSample, ...] = ()


def chat_messages(sample: Sample) -> list[dict[str, Any]]:
    """The turns before the answer, in the form that chat templates take."""
    messages = []
    for turn in sample.turns[:-1]:
        parts: list[dict[str, str]] = []
        texts = turn.text.split(IMAGE_MARK)
        for position, text in enumerate(texts):
            # LLaVA rows put a newline between an image and its question; templates bring their own.
            if position:
                parts.append({"type": "image"})
                text = text.removeprefix("\n")
            if position < len(texts) - 1:
                text = text.removesuffix("\n")
            if text:
                parts.append({"type": "text", "text": text})
        messages.append({"role": turn.role, "content": parts})
    return messages


def tokenize(
    sample: Sample, processor: Any, images: list[Image.Image], *, max_tokens: int
) -> TokenizedSample:
    """Tokenize `sample` with one VLM's processor.

    Raises:
        DataError: the sample is longer than `max_tokens`, its text holds a token that stands for an image, it
            has more or fewer images than places for them, or the processor cannot read it.
    """
    where = f"sample '{sample.id}' of {sample.source}"
    messages = chat_messages(sample)
    parts = [part for message in messages for part in message["content"]]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    for token in placeholders(processor):
        if any(token in text for text in (*texts, sample.answer)):
            raise DataError(f"has the text '{token}', which stands for an image", where=where)
    if len(parts) - len(texts) != len(images):
        raise DataError(
            f"has {len(images)} images and {len(parts) - len(texts)} places for them", where=where
        )
    try:
        prompt = encode_prompt(processor, messages, images)
    except Exception as error:  # whatever a template or a processor makes of a sample that it cannot read
        message = " ".join(str(error).split())[:300]
        raise DataError(f"{type(processor).__name__} cannot read it ({message})", where=where) from error
    form = answer_form(processor)
    answer_ids, answer_ends = answer_tokens(processor.tokenizer, form.lead + sample.answer)
    answer_ids[-1] = form.end_id
    length = len(prompt.ids) + len(answer_ids)
    if length > max_tokens:
        raise DataError(
            f"has {length} tokens for {type(processor).__name__}, max_tokens is {max_tokens}", where=where
        )
    return TokenizedSample(
        question_ids=prompt.ids,
        token_inputs=prompt.token_inputs,
        answer_ids=answer_ids,
        answer_ends=(answer_ends - len(form.lead)).clamp(min=0),
        vision=prompt.vision,
    )


# By place (0: the student, then the teachers) and sample.
SharedTokens = dict[tuple[int, Sample], TokenizedSample]


class PairReader:
    """Reads samples by index as PairedSamples: images decoded once for all VLMs.

    A `torch.utils.data.Dataset` in all but name, so that a DataLoader can read ahead.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        student: Any,
        teachers: Sequence[Any] = (),
        max_tokens: int,
        keep: int = 0,
        shared: SharedTokens | None = None,
    ) -> None:
        """Read from `samples` with the processors of the student and of the teachers.

        Args:
            samples: what to read.
            student: processor.
            teachers: processors.
            max_tokens: longest sample in any of the vocabularies.
            keep: so many samples stay in memory once they were read; small sets are read many times.
            shared: where they stay for other readers with processors of the same settings in the same order;
                None: no other reader has them.
        """
        self.samples, self.student, self.teachers = samples, student, tuple(teachers)
        self.max_tokens, self.keep = max_tokens, keep
        self.shared: SharedTokens = {} if shared is None else shared
        self.student_blank = blank_prompt(student)
        self.teacher_blanks = tuple(blank_prompt(teacher) for teacher in self.teachers)
        self._kept: dict[int, PairedSample] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PairedSample:
        if index in self._kept:
            return self._kept[index]
        sample = self.samples[index]
        processors = (self.student, *self.teachers)
        known = [self.shared.get((place, sample)) if self.keep else None for place in range(len(processors))]
        images = [] if all(known) else [open_image(image) for image in sample.images]
        student, *teachers = (
            found or tokenize(sample, processor, images, max_tokens=self.max_tokens)
            for found, processor in zip(known, processors, strict=True)
        )
        pair = PairedSample(id=sample.id, domain=sample.domain, student=student, teachers=tuple(teachers))
        if len(self._kept) < self.keep:
            self._kept[index] = pair
            self.shared |= {(place, sample): one for place, one in enumerate((student, *teachers))}
        return pair
