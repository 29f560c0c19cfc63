"""Tokenizer, chat template and weights that do not belong together are told apart from those that do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.errors import ModelError
from genrecal.data.belonging import Finding, template_findings
from genrecal.data.inputs import blank_prompt
from genrecal.models.processors import load_model, load_processor
from genrecal.train.preflight_models import vocabulary_of
from tests.families import ReadFamily
from tests.tiny import TinyPair


def said(findings: list[Finding], level: str) -> str:
    return " | ".join(finding.what for finding in findings if finding.level == level)


@pytest.fixture
def teacher(tiny_pair: TinyPair) -> tuple[Any, Any]:
    """Processor and what its model says of token ids; the processor is the test's own."""
    return load_processor(tiny_pair.teacher), vocabulary_of(load_model(tiny_pair.teacher))


def test_nothing_is_wrong_with_any_family(family: ReadFamily) -> None:
    assert said(template_findings(family.processor, vocabulary_of(family.model())), "error") == ""


def test_marks_that_the_tokenizer_does_not_know(teacher: tuple[Any, Any]) -> None:
    processor, vocabulary = teacher
    processor.chat_template = processor.chat_template.replace("<|im_start|>", "<|start_header_id|>")
    found = said(template_findings(processor, vocabulary), "error")
    assert "writes '<|start_header_id|>', which its tokenizer cuts into" in found


def test_a_template_without_a_generation_prompt(teacher: tuple[Any, Any]) -> None:
    processor, vocabulary = teacher
    processor.chat_template = processor.chat_template.replace("add_generation_prompt", "false")
    found = said(template_findings(processor, vocabulary), "error")
    assert "its prompt does not end where the model starts to answer" in found
    assert "'<|im_start|>assistant' between the two" in found


def test_an_image_token_that_the_model_puts_elsewhere(teacher: tuple[Any, Any]) -> None:
    processor, vocabulary = teacher
    found = template_findings(processor, replace(vocabulary, image_token_id=3))
    assert "the model puts images at token 3: they would reach it nowhere" in said(found, "error")


def test_an_image_token_that_the_tokenizer_lacks(teacher: tuple[Any, Any]) -> None:
    processor, vocabulary = teacher
    processor.image_token = "<|IMG|>"
    assert "has no token '<|IMG|>'" in said(template_findings(processor, vocabulary), "error")


def test_a_turn_that_ends_otherwise_than_generation(teacher: tuple[Any, Any]) -> None:
    processor, vocabulary = teacher
    found = template_findings(processor, replace(vocabulary, end_ids=(0,)))
    assert "generation_config stops at '<|endoftext|>'" in said(found, "warning")
    assert not said(found, "error")


def test_entries_beyond_the_embeddings(teacher: tuple[Any, Any]) -> None:
    processor, vocabulary = teacher
    rows = vocabulary.embedding_rows
    fewer = template_findings(processor, replace(vocabulary, embedding_rows=rows - 7))
    assert f"7 entries beyond the model's {rows - 7} embeddings" in said(fewer, "error")
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    processor.tokenizer.add_tokens(["<own>"])
    added = template_findings(processor, vocabulary)
    assert "1 added tokens beyond" in said(added, "warning") and not said(added, "error")


def test_the_template_of_another_family_is_one_line(tiny_pair: TinyPair) -> None:
    """The student's writes its own image token, which the teacher's processor does not look for."""
    processor = load_processor(tiny_pair.teacher)
    processor.chat_template = load_processor(tiny_pair.student).chat_template
    with pytest.raises(ModelError, match="InternVLProcessor cannot put an image into a prompt"):
        blank_prompt(processor)


def test_vocabulary_of_a_model(tiny_pair: TinyPair, tmp_path: Path) -> None:
    model = load_model(tiny_pair.teacher)
    found = vocabulary_of(model)
    assert (found.embedding_rows, found.head_rows) == tuple(
        layer.weight.shape[0] for layer in (model.get_input_embeddings(), model.lm_head)
    )
    assert found.image_token_id == model.config.image_token_id
    assert found.end_ids == (model.generation_config.eos_token_id,)
    assert isinstance(model.lm_head, torch.nn.Linear)
