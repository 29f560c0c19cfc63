"""One sample as two token sequences: each VLM reads it through its own processor and chat template.

    Sample -> question ids (with the image tokens) + answer ids + pixel tensors, for teacher and student

The question ends where the model would start to generate; the answer is the text and the end-of-turn token.
They are tokenized apart, so that the border lies between two tokens in both vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import DOMAINS, ImageSource, Sample
from genrecal.data.align import answer_tokens
from genrecal.data.features import Origin, SampleFeatures
from genrecal.data.inputs import (
    Prompt,
    answer_form,
    blank_prompt,
    encode_prompt,
    placeholders,
    turn_tokens,
)
from genrecal.data.llava import IMAGE_MARK


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """One sample as one VLM reads it."""

    question_ids: torch.Tensor  # [Q]
    token_inputs: dict[str, torch.Tensor]  # [Q] each (inputs.py)
    answer_ids: torch.Tensor  # [A], the last one ends the turn
    answer_ends: torch.Tensor  # [A], characters of the answer that are complete with each token (align.py)
    vision: dict[str, torch.Tensor]  # pixel_values and what goes with them; empty for text alone
    features: SampleFeatures | None = None  # in place of the question, which is empty then
    origin: Origin | None = None  # where the teacher's features of it are recorded

    @property
    def question_length(self) -> int:
        return len(self.question_ids) if self.features is None else self.features.question_length

    @property
    def has_question(self) -> bool:
        """Whether there is anything of the question to read, or features of the answer alone."""
        return self.features is None or self.features.question is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSample:
    """The same sample for the student and for every teacher of the run."""

    id: str
    domain: str
    student: TokenizedSample
    teachers: tuple[TokenizedSample, ...] = ()

    @property
    def answered(self) -> bool:
        """Not so where it stands for a sample that was left out."""
        return len(self.student.answer_ids) > 0


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


def question_prompt(sample: Sample, processor: Any, images: list[Image.Image]) -> Prompt:
    """What one VLM reads before it answers `sample`.

    Raises:
        DataError: its text holds a token that stands for an image or that ends a turn, it has more or fewer
            images than places for them, or the processor cannot read it.
    """
    where = name_of(sample)
    messages = chat_messages(sample)
    parts = [part for message in messages for part in message["content"]]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    meanings = dict.fromkeys(turn_tokens(processor), "builds a conversation")
    meanings |= dict.fromkeys(placeholders(processor), "stands for an image")
    for token, meaning in meanings.items():
        if any(token in text for text in (*texts, sample.answer)):
            raise DataError(f"has the text '{token}', which {meaning}", where=where)
    if len(parts) - len(texts) != len(images):
        raise DataError(
            f"has {len(images)} images and {len(parts) - len(texts)} places for them", where=where
        )
    try:
        return encode_prompt(processor, messages, images)
    except Exception as error:  # whatever a template or a processor makes of a sample that it cannot read
        message = " ".join(str(error).split())[:300]
        raise DataError(f"{type(processor).__name__} cannot read it ({message})", where=where) from error


def tokenize(
    sample: Sample, processor: Any, images: list[Image.Image], *, max_tokens: int
) -> TokenizedSample:
    """Tokenize `sample` with one VLM's processor.

    Raises:
        DataError: the sample is longer than `max_tokens`, or `question_prompt` refuses it.
    """
    prompt = question_prompt(sample, processor, images)
    answer_ids, answer_ends = tokenize_answer(sample, processor)
    length = len(prompt.ids) + len(answer_ids)
    if length > max_tokens:
        raise DataError(
            f"has {length} tokens for {type(processor).__name__}, max_tokens is {max_tokens}",
            where=name_of(sample),
        )
    return TokenizedSample(
        question_ids=prompt.ids,
        token_inputs=prompt.token_inputs,
        answer_ids=answer_ids,
        answer_ends=answer_ends,
        vision=prompt.vision,
    )


def tokenize_answer(sample: Sample, processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer's token ids and their ends (align.py), [A] both; the last one ends the turn."""
    form = answer_form(processor)
    answer_ids, answer_ends = answer_tokens(processor.tokenizer, form.lead + sample.answer)
    answer_ids[-1] = form.end_id
    return answer_ids, (answer_ends - len(form.lead)).clamp(min=0)


def name_of(sample: Sample) -> str:
    """What an error calls it."""
    return f"sample '{sample.id}' of {sample.source}"


def open_images(sample: Sample) -> list[Image.Image]:
    """The images of `sample`, decoded.

    Raises:
        DataError: one of them cannot be; it is named, and the sample in the advice.
    """
    return [_opened(image, sample) for image in sample.images]


def _opened(image: ImageSource, sample: Sample) -> Image.Image:
    try:
        return open_image(image)
    except DataError as error:
        fix = " ".join(filter(None, (error.fix, f"Sample '{sample.id}' of {sample.source} names it")))
        raise DataError(error.what, where=error.where, fix=fix) from None


def absent_sample(student_blank: Prompt, teacher_blanks: Sequence[Prompt]) -> PairedSample:
    """A row for a sample that is left out: the first token of a question, and no answer.

    So a micro-batch keeps its size and every module runs, also where all of its samples are left out, and no
    loss finds anything to be taken at.
    """
    return PairedSample(
        id="", domain=DOMAINS[0], student=_absent(student_blank), teachers=tuple(map(_absent, teacher_blanks))
    )


def _absent(blank: Prompt) -> TokenizedSample:
    nothing = blank.ids.new_zeros(0)
    return TokenizedSample(
        question_ids=blank.ids[:1],
        token_inputs={name: value[:1] for name, value in blank.token_inputs.items()},
        answer_ids=nothing,
        answer_ends=nothing,
        vision={},
    )


class Reads(Protocol):
    """How a teacher reads a sample: `tokenize`, or what stands in its place."""

    @property
    def pixels(self) -> bool:
        """Whether it needs the images."""
        ...

    @property
    def absent(self) -> TokenizedSample | None:
        """The row of a sample that is left out, where `absent_sample` makes none that fits the others."""
        ...

    def __call__(
        self, sample: Sample, processor: Any, images: list[Image.Image], *, max_tokens: int
    ) -> TokenizedSample: ...


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
        reads: Sequence[Reads | None] = (),
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
            reads: how each teacher reads a sample, where not by `tokenize`; what it gives is not shared.
        """
        self.samples, self.student, self.teachers = samples, student, tuple(teachers)
        self.max_tokens, self.keep = max_tokens, keep
        self.shared: SharedTokens = {} if shared is None else shared
        self.reads = (None, *(reads or (None,) * len(self.teachers)))
        self.student_blank = blank_prompt(student)
        self.teacher_blanks = tuple(blank_prompt(teacher) for teacher in self.teachers)
        absent = absent_sample(self.student_blank, self.teacher_blanks)
        ways = zip(self.reads[1:], absent.teachers, strict=True)
        self.absent = replace(absent, teachers=tuple((way and way.absent) or row for way, row in ways))
        self._kept: dict[int, PairedSample] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PairedSample:
        if index in self._kept:
            return self._kept[index]
        sample = self.samples[index]
        processors = (self.student, *self.teachers)
        known = [
            self.shared.get((place, sample)) if self.keep and reads is None else None
            for place, reads in enumerate(self.reads)
        ]
        unread = any(
            not found and (not reads or reads.pixels) for found, reads in zip(known, self.reads, strict=True)
        )
        images = open_images(sample) if unread else []
        student, *teachers = (
            found or (reads or tokenize)(sample, processor, images, max_tokens=self.max_tokens)
            for found, reads, processor in zip(known, self.reads, processors, strict=True)
        )
        pair = PairedSample(id=sample.id, domain=sample.domain, student=student, teachers=tuple(teachers))
        if len(self._kept) < self.keep:
            self._kept[index] = pair
            self.shared |= {
                (place, sample): one
                for place, one in enumerate((student, *teachers))
                if self.reads[place] is None
            }
        return pair
