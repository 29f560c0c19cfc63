"""Scores against transformers' own processors, draws against their probabilities."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from edge.sampling import GenerationSettings, choose_token, process_logits, read_generation_config
from genrecal.core.errors import BuildError, ConfigError

SAMPLED = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"top_p": 0.001},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 1.9, "top_k": 20, "top_p": 0.6},
    {"temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05},
    {"top_k": 0},
    {"top_k": 1000},
]


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_scores_equal_transformers(student: SimpleNamespace, options: dict) -> None:
    reference = GenerationConfig(do_sample=True, **options)
    processors = student.model._get_logits_processor(
        reference, input_ids_seq_length=3, prefix_allowed_tokens_fn=None, logits_processor=[]
    )
    ours = read_generation_config(reference.to_diff_dict())
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits_V = generator.normal(0, 3, 200).astype(np.float32)
        seen = generator.integers(0, 200, 30)
        expected = processors(torch.from_numpy(seen)[None], torch.from_numpy(logits_V)[None])[0].numpy()
        found = process_logits(logits_V, seen, ours)
        assert np.array_equal(np.isinf(found), np.isinf(expected))
        assert np.allclose(found, expected, rtol=1e-6, atol=0)


def test_logits_are_left_as_they_were() -> None:
    logits_V = np.arange(6, dtype=np.float32) - 3
    settings = GenerationSettings(do_sample=True, repetition_penalty=2.0, top_k=2, top_p=0.5, temperature=2.0)
    process_logits(logits_V, np.array([0, 5]), settings)
    assert np.array_equal(logits_V, np.arange(6) - 3)


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        scores_V = np.log(probabilities).astype(np.float32)
    settings, generator = GenerationSettings(do_sample=True), np.random.default_rng(0)
    draws = [choose_token(scores_V, settings, generator) for _ in range(20000)]
    shares = np.bincount(draws, minlength=5) / len(draws)
    assert shares[1] == 0
    assert np.abs(shares - probabilities).max() < 4 * np.sqrt(0.25 / len(draws))


@pytest.mark.parametrize(("draw", "token"), [(0.0, 1), (np.nextafter(1.0, 0.0), 3)])
def test_the_outermost_draws_are_allowed_tokens(draw: float, token: int) -> None:
    scores_V = np.array([-np.inf, 0.3, -np.inf, 0.1, -np.inf], np.float32)
    outermost = SimpleNamespace(random=lambda: draw)
    assert choose_token(scores_V, GenerationSettings(do_sample=True), outermost) == token


def test_greedy_takes_the_largest_whatever_the_sampler_is_set_to() -> None:
    logits_V = np.array([0.0, 5.0, 4.9], np.float32)
    settings = GenerationSettings(do_sample=False, temperature=0.0, top_k=1, top_p=0.1)
    scores_V = process_logits(logits_V, np.array([0]), settings)
    assert choose_token(scores_V, settings, np.random.default_rng(0)) == 1
    penalised = dataclasses.replace(settings, repetition_penalty=1.1)
    scores_V = process_logits(logits_V, np.array([1]), penalised)
    assert choose_token(scores_V, penalised, np.random.default_rng(0)) == 2


def test_the_published_models_file_is_read() -> None:
    content = {
        "bos_token_id": 151643,
        "pad_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.0,
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
        "transformers_version": "4.37.0",
    }
    found = read_generation_config(content)
    assert found.eos_token_ids == (151645, 151643)
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.01, 1, 0.001)


def test_what_a_file_leaves_out_has_transformers_defaults() -> None:
    found, reference = read_generation_config({"top_p": None}), GenerationConfig()
    for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(found, name) == getattr(reference, name)
    assert read_generation_config(reference.to_dict()) == found
    assert found.eos_token_ids == () and read_generation_config({"eos_token_id": 3}).eos_token_ids == (3,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_beams": 4}, "asks for 'num_beams' = 4, which this runtime does not have"),
        ({"no_repeat_ngram_size": 3}, "'no_repeat_ngram_size' = 3"),
        ({"temperature": "hot"}, "a value cannot be used"),
        ({"do_sample": True, "temperature": 0.0}, "'temperature' is 0.0, it must be above 0"),
        ({"eos_token_id": "end"}, "a value cannot be used"),
    ],
)
def test_files_that_cannot_be_followed(content: dict, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read_generation_config(content)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0, it must be at least 1"),
        ({"top_k": -1}, "'top_k'"),
        ({"top_p": 1.5}, "'top_p'"),
        ({"repetition_penalty": 0.0}, "'repetition_penalty'"),
        ({"do_sample": True, "temperature": float("nan")}, "'temperature'"),
        ({"stop_strings": ("",)}, "'stop_strings'"),
        ({"stop_strings": "abc"}, "'stop_strings'"),
        ({"beams": 3}, "unknown generation setting 'beams'. Known: max_new_tokens"),
        ({"top-k": 3}, "Did you mean 'top_k'"),
    ],
)
def test_overrides_out_of_range(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationSettings().overridden(overrides)
