"""One sample as two token sequences: each VLM reads it through its own processor and chat template.

    Sample -> question ids (with the image tokens) + answer ids + pixel tensors, for teacher and student

The question ends where the model would start to generate; the answer is the text and the end-of-turn token.
They are tokenized apart, so that the border lies between two tokens in both vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import Sample
from genrecal.data.llava import IMAGE_MARK

BLANK_PX = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """One sample as one VLM reads it."""

    question_ids: torch.Tensor  # [Q]
    answer_ids: torch.Tensor  # [A], the last one ends the turn
    vision: dict[str, torch.Tensor]  # pixel_values and what goes with them; empty for text alone


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankImage:
    """A blank image as one VLM reads it, for batches that have none (batch.py says why)."""

    ids: torch.Tensor  # [I]
    vision: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSample:
    """The same sample for both VLMs; `teacher` is None where a method has none."""

    id: str
    student: TokenizedSample
    teacher: TokenizedSample | None


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
        DataError: the sample is longer than `max_tokens`.
    """
    if any(processor.image_token in turn.text for turn in sample.turns):
        raise DataError(
            f"has the text '{processor.image_token}', which stands for an image",
            where=f"sample '{sample.id}' of {sample.source}",
        )
    text = processor.apply_chat_template(chat_messages(sample), add_generation_prompt=True, tokenize=False)
    encoded = processor(text=[text], images=images or None, return_tensors="pt")
    question_ids = encoded.pop("input_ids")[0]
    encoded.pop("attention_mask")
    tokenizer = processor.tokenizer
    answer = tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    answer_ids = torch.tensor([*answer, tokenizer.eos_token_id])
    length = len(question_ids) + len(answer_ids)
    if length > max_tokens:
        raise DataError(
            f"has {length} tokens for {type(processor).__name__}, max_tokens is {max_tokens}",
            where=f"sample '{sample.id}' of {sample.source}",
        )
    return TokenizedSample(question_ids=question_ids, answer_ids=answer_ids, vision=dict(encoded))


def blank_image(processor: Any) -> BlankImage:
    """The smallest image that says nothing, with the tokens that `processor` gives it."""
    encoded = processor(
        text=[processor.image_token], images=[Image.new("RGB", (BLANK_PX, BLANK_PX))], return_tensors="pt"
    )
    ids = encoded.pop("input_ids")[0]
    encoded.pop("attention_mask")
    return BlankImage(ids=ids, vision=dict(encoded))


class PairReader:
    """Reads samples by index as PairedSamples: images decoded once for both VLMs.

    A `torch.utils.data.Dataset` in all but name, so that a DataLoader can read ahead.
    """

    def __init__(
        self, samples: tuple[Sample, ...], *, student: Any, teacher: Any | None, max_tokens: int
    ) -> None:
        self.samples, self.student, self.teacher, self.max_tokens = samples, student, teacher, max_tokens
        self.student_blank = blank_image(student)
        self.teacher_blank = blank_image(teacher) if teacher is not None else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PairedSample:
        sample = self.samples[index]
        images = [open_image(path) for path in sample.images]
        teacher = None
        if self.teacher is not None:
            teacher = tokenize(sample, self.teacher, images, max_tokens=self.max_tokens)
        student = tokenize(sample, self.student, images, max_tokens=self.max_tokens)
        return PairedSample(id=sample.id, student=student, teacher=teacher)
