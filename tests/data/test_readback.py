"""Samples read back from their tokens: what was lost on the way is named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.data.belonging import ModelVocabulary
from genrecal.data.pair import TokenizedSample
from genrecal.data.readback import Problem, pixel_findings, plain, sample_problems, summarize
from genrecal.models.processors import load_processor
from genrecal.train.preflight_models import vocabulary_of
from tests.families import SAMPLES, ReadFamily, conversation, read_family
from tests.tiny import TinyPair

WIDE = ModelVocabulary(embedding_rows=10**6, head_rows=10**6, image_token_id=None, end_ids=())


@pytest.fixture(scope="module")
def student(tiny_pair: TinyPair) -> ReadFamily:
    """A Qwen2-VL, whose processor takes any number of image tokens."""
    return read_family("qwen2_vl", tiny_pair.student)


def problems(read: ReadFamily, place: int, row: TokenizedSample | None = None) -> dict[str, Problem]:
    found = sample_problems(SAMPLES[place][0], row or read.rows[place], read.processor, WIDE)
    return {problem.kind: problem for problem in found}


def test_every_family_gives_samples_back(family: ReadFamily) -> None:
    """Letters of several bytes, two images, a past turn: nothing is lost and nothing is said."""
    vocabulary = vocabulary_of(family.model())
    for (sample, _), row in zip(SAMPLES, family.rows, strict=True):
        assert not list(sample_problems(sample, row, family.processor, vocabulary))
    assert not pixel_findings(family.rows)


def test_an_answer_of_another_tokenizers_ids(student: ReadFamily, family_folders: dict[str, Path]) -> None:
    """The student's ids where the teacher's belong, the fault that cross-tokenizer distillation fears."""
    teacher = load_processor(family_folders["idefics3"])
    sample, row = SAMPLES[1][0], student.rows[1]
    found = {problem.kind: problem for problem in sample_problems(sample, row, teacher, WIDE)}
    assert "the answer 'größer: 🙂 the third bar' comes back as" in found["answer"].what


def test_a_prompt_that_lost_or_repeats_a_turn(student: ReadFamily) -> None:
    other, own = student.rows[3], student.rows[0]
    lost = problems(student, 0, replace(own, question_ids=other.question_ids))
    assert "the prompt has lost the text 'read the text.'" in lost["question lost"].what
    twice = torch.cat([own.question_ids, own.question_ids])
    repeated = problems(student, 0, replace(own, question_ids=twice))
    assert "the prompt has the text 'read the text.' 2 times" in repeated["question repeated"].what


def test_a_template_that_drops_the_image(student: ReadFamily) -> None:
    own = student.rows[2]
    image = student.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    bare = replace(own, question_ids=own.question_ids[own.question_ids != image])
    sample = replace(SAMPLES[2][0], images=("one.png", "two.png"))  # type: ignore[arg-type]
    found = list(sample_problems(sample, bare, student.processor, WIDE))
    assert [problem.what for problem in found] == ["has 2 images, and its prompt no '<|image_pad|>'"]
    assert found[0].level == "error"


def test_a_placeholder_that_stays_text(student: ReadFamily) -> None:
    own = student.rows[3]
    text = student.processor.tokenizer("<image>", add_special_tokens=False, return_tensors="pt").input_ids[0]
    found = problems(student, 3, replace(own, question_ids=torch.cat([text, own.question_ids])))
    assert "'<image>' stands in the prompt as text" in found["placeholder"].what


def with_begin(read: ReadFamily) -> tuple[Any, int]:
    """The processor with a tokenizer that has a token to begin texts with."""
    processor = copy.copy(read.processor)
    processor.tokenizer = copy.deepcopy(read.processor.tokenizer)
    processor.tokenizer.bos_token = "<|endoftext|>"
    return processor, processor.tokenizer.bos_token_id


def test_a_begin_token_twice_and_in_the_answer(student: ReadFamily) -> None:
    processor, begin = with_begin(student)
    sample, own = SAMPLES[3][0], student.rows[3]
    mark = torch.tensor([begin])
    twice = replace(own, question_ids=torch.cat([mark, mark, own.question_ids]))
    (found,) = sample_problems(sample, twice, processor, WIDE)
    assert found.level == "error" and "begins with '<|endoftext|>' twice" in found.what
    inside = replace(own, answer_ids=torch.cat([mark, own.answer_ids]))
    found_inside = {one.kind for one in sample_problems(sample, inside, processor, WIDE)}
    assert "begin in answer" in found_inside


def test_ids_beyond_the_embeddings(student: ReadFamily) -> None:
    narrow = replace(WIDE, embedding_rows=20)
    (found,) = sample_problems(SAMPLES[3][0], student.rows[3], student.processor, narrow)
    assert found.level == "error" and "and the model has 20 embeddings" in found.what


def test_what_half_of_the_samples_have_is_an_error() -> None:
    problem = Problem(kind="answer", what="it is lost", level="share")
    many = [(conversation(str(number), "a", "b"), problem) for number in range(3)]
    (few,), (most,) = summarize(many[:2], samples=4), summarize(many, samples=4)
    assert (few.level, most.level) == ("warning", "error")
    assert most.what == "3 of 4 samples, '0' of here for one: it is lost"
    (alone,) = summarize([(many[0][0], replace(problem, level="error"))], samples=9)
    assert alone.level == "error"


def test_pixels_out_of_range(student: ReadFamily) -> None:
    row = student.rows[0]
    for factor, reach in ((255.0, "reach"), (1 / 255, "deviation")):
        pixels = {"pixel_values": row.vision["pixel_values"] * factor}
        (found,) = pixel_findings([replace(row, vision=row.vision | pixels)])
        assert found.level == "error" and reach in found.what


def test_texts_are_compared_without_spacing_and_ligatures() -> None:
    assert plain(" a\n\n ﬁne\tday ") == "a fine day"
