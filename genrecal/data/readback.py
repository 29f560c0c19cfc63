"""What a processor makes of samples, read back: is the model given what they say?

    Sample, TokenizedSample --> sample_problems --> summarize: one finding for each kind

Texts are compared in Unicode's form NFKC with every run of white space as one space: some tokenizers write
ligatures apart and join spaces, and a model that was trained that way is well. As every model's answer is
compared with the sample's own text, the answers of student and teacher are the same text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from genrecal.core.types import Sample
from genrecal.data.belonging import Finding, ModelVocabulary
from genrecal.data.inputs import PROBE, placeholders
from genrecal.data.llava import IMAGE_MARK
from genrecal.data.pair import TokenizedSample, chat_messages

# A shorter text of a user may well stand in the template or in another turn, too.
TELLING_CHARACTERS = 12
SHOWN_CHARACTERS = 60
# Pixels are scaled to between 0 and 1 and then by a mean and a deviation of about 0.2 to 0.5: they end within
# 3. Of whole images the most lively one varies by far more than a hundredth.
LARGEST_PIXEL, LEAST_SPREAD = 8.0, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is wrong with one sample's tokens."""

    kind: str
    what: str
    level: Literal["error", "warning", "share"]
    """Of the kind; share: an error where more than half of the samples have it, else a warning."""


def sample_problems(
    sample: Sample, row: TokenizedSample, processor: Any, vocabulary: ModelVocabulary
) -> Iterator[Problem]:
    """What one model's tokens of a sample have lost or gained against the sample's own text.

    Args:
        sample: as it was read.
        row: what `tokenize` made of it.
        processor: that it was tokenized with.
        vocabulary: of the model.
    """
    tokenizer = processor.tokenizer
    question_ids, answer_ids = row.question_ids.tolist(), row.answer_ids.tolist()
    largest, largest_answer = max(*question_ids, *answer_ids), max(answer_ids)
    if largest >= vocabulary.embedding_rows or largest_answer >= vocabulary.head_rows:
        yield Problem(
            kind="vocabulary",
            what=f"holds token {largest}, and the model has {vocabulary.embedding_rows:,} embeddings and a"
            f" head for {vocabulary.head_rows:,}",
            level="error",
        )
    answer = decoded_answer(row, processor)
    if answer != plain(sample.answer):
        yield Problem(
            kind="answer",
            what=f"the answer '{_shown(sample.answer)}' comes back as '{_shown(answer)}'",
            level="share",
        )
    prompt = tokenizer.decode(question_ids, clean_up_tokenization_spaces=False)
    yield from _question_problems(sample, plain(prompt))
    yield from _placeholder_problems(sample, prompt, row.question_ids, processor)
    yield from _begin_problems(sample, question_ids, answer_ids, tokenizer)


def pixel_findings(rows: Sequence[TokenizedSample]) -> list[Finding]:
    """Whether the image processor has scaled the pixels as any family's does."""
    pixels = [value.float() for row in rows for value in row.vision.values() if value.is_floating_point()]
    if not pixels:
        return []
    largest = max(float(value.abs().max()) for value in pixels)
    spread = max(float(value.std()) for value in pixels)
    if spread >= LEAST_SPREAD and largest <= LARGEST_PIXEL:
        return []
    return [
        Finding(
            level="error",
            what=f"its image processor makes pixels of a standard deviation of {spread:.2g} that reach"
            f" {largest:.3g}: they are scaled twice, or not at all",
            fix="Look at do_rescale, rescale_factor, image_mean and image_std in preprocessor_config.json",
        )
    ]


def decoded_answer(row: TokenizedSample, processor: Any) -> str:
    """The answer's tokens as text, by the model's own tokenizer and without the one that ends the turn."""
    ids = row.answer_ids[:-1].tolist()
    return plain(processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def plain(text: str) -> str:
    """`text` in NFKC, with every run of white space as one space and none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def summarize(problems: Sequence[tuple[Sample, Problem]], *, samples: int) -> list[Finding]:
    """One finding for each kind of problem; what half of the samples have is no quirk of one sample."""
    findings = []
    for kind in dict.fromkeys(problem.kind for _, problem in problems):
        of_kind = [(sample, problem) for sample, problem in problems if problem.kind == kind]
        sample, first = of_kind[0]
        certain = first.level == "error" or (first.level == "share" and 2 * len(of_kind) > samples)
        findings.append(
            Finding(
                level="error" if certain else "warning",
                what=f"{len(of_kind)} of {samples} samples, '{sample.id}' of {sample.source} for one:"
                f" {first.what}",
                fix="Tokenizer, chat template and processor must be the model's own" if certain else "",
            )
        )
    return findings


def _question_problems(sample: Sample, prompt: str) -> Iterator[Problem]:
    """Every user's text stands in the prompt as often as in the conversation; past answers may be cut."""
    conversation = [plain(turn.text.replace(IMAGE_MARK, " ")) for turn in sample.turns[:-1]]
    for message in chat_messages(sample):
        for part in message["content"]:
            text = plain(part.get("text", ""))
            if message["role"] == "assistant" or not text:
                continue
            found = prompt.count(text)
            if not found:
                what = f"the prompt has lost the text '{_shown(text)}'"
                yield Problem(kind="question lost", what=what, level="share")
            elif len(text) >= TELLING_CHARACTERS and found > sum(turn.count(text) for turn in conversation):
                what = f"the prompt has the text '{_shown(text)}' {found} times"
                yield Problem(kind="question repeated", what=what, level="share")


def _placeholder_problems(
    sample: Sample, prompt: str, question_ids: torch.Tensor, processor: Any
) -> Iterator[Problem]:
    tokenizer, texts = processor.tokenizer, placeholders(processor)
    ids = tokenizer.convert_tokens_to_ids(list(texts))
    counts = [int((question_ids == place).sum()) for place in ids]
    if sample.images and not counts[0]:
        yield Problem(
            kind="image tokens",
            what=f"has {len(sample.images)} images, and its prompt no '{texts[0]}'",
            level="error",
        )
    for text in (*texts, IMAGE_MARK):
        count = counts[texts.index(text)] if text in texts else 0
        if prompt.count(text) > count:
            what = f"'{text}' stands in the prompt as text: nothing was put in its place"
            yield Problem(kind="placeholder", what=what, level="error")


def _begin_problems(
    sample: Sample, question_ids: list[int], answer_ids: list[int], tokenizer: Any
) -> Iterator[Problem]:
    begin = tokenizer.bos_token_id
    # Some tokenizers begin and end texts with one token; an answer then ends with it as it should.
    if begin is None or (tokenizer.bos_token or "") in sample.answer:
        return
    if question_ids[:2] == [begin, begin]:
        what = f"its prompt begins with '{tokenizer.bos_token}' twice: template and tokenizer both write it"
        yield Problem(kind="begin twice", what=what, level="error")
    if begin in answer_ids[:-1]:
        what = f"its answer holds '{tokenizer.bos_token}', which begins texts"
        yield Problem(kind="begin in answer", what=what, level="error")
    begins = tokenizer(PROBE)["input_ids"][:1] == [begin]
    if begins and question_ids[0] != begin:
        what = f"its prompt does not begin with '{tokenizer.bos_token}', as texts do for this tokenizer"
        yield Problem(kind="begin missing", what=what, level="warning")


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
