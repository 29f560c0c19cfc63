"""Scores against transformers' own processors, step by step and together, on random logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig

from edge.logits import Context, process_logits
from edge.sampling import GenerationSettings, choose_token, read_generation_config

VOCABULARY, PROMPT = 200, 24
ENDS = [7, 11]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"top_p": 0.001},
    {"top_k": 0},
    {"top_k": 1000},
    {"min_p": 0.05},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"typical_p": 0.6},
    {"typical_p": 0.01, "top_k": 0},
    {"epsilon_cutoff": 0.02, "top_k": 0},
    {"epsilon_cutoff": 0.9, "top_k": 0},
    {"eta_cutoff": 0.05, "top_k": 0},
    {"eta_cutoff": 0.5},
    {"temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05},
    {"repetition_penalty": 0.8, "temperature": 1.9, "top_k": 20, "top_p": 0.6, "min_p": 0.01},
    {"top_p": 0.9, "typical_p": 0.9, "eta_cutoff": 0.001, "renormalize_logits": True},
]
ALWAYS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"encoder_repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 3},
    {"min_length": PROMPT + 4},
    {"min_new_tokens": 5},
    {"bad_words_ids": [[3], [7], [1, 2], [4, 0, 1]]},
    {"sequence_bias": [[[3], -2.5], [[1, 2], 4.0], [[3, 1, 2], 1.5]]},
    {"forced_eos_token_id": 11},
    {"forced_eos_token_id": ENDS},
    {"suppress_tokens": [1, 2, 3]},
    {"begin_suppress_tokens": [4, 5]},
    {"exponential_decay_length_penalty": (2, 1.3)},
    {"renormalize_logits": True},
    {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_new_tokens": 2, "suppress_tokens": [9]},
]


class Reference(GenerationMixin):
    """As much of a model as transformers needs to make its processors."""

    config = PretrainedConfig()
    main_input_name = "input_ids"
    device = torch.device("cpu")


def reference(content: dict[str, Any], prompt_S: np.ndarray) -> Any:
    config = GenerationConfig(**content, eos_token_id=ENDS, max_length=PROMPT + content["max_new_tokens"])
    model = Reference()
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device="cpu")
    return model._get_logits_processor(
        config,
        input_ids_seq_length=PROMPT,
        encoder_input_ids=torch.from_numpy(prompt_S)[None],
        prefix_allowed_tokens_fn=None,
        logits_processor=[],
        device="cpu",
    )


@pytest.mark.parametrize("answer", [0, 1, 5, 9])
@pytest.mark.parametrize(
    "options",
    [*({"do_sample": True, **one} for one in SAMPLED), *ALWAYS, {"do_sample": True, **ALWAYS[-1]}],
    ids=str,
)
def test_scores_equal_transformers(options: dict[str, Any], answer: int) -> None:
    content = {"max_new_tokens": 10, **options}
    ours = read_generation_config({**content, "eos_token_id": ENDS})
    generator = np.random.default_rng(answer)
    changed = 0
    for _ in range(10):
        logits_V = generator.normal(0, 3, VOCABULARY).astype(np.float32)
        # Few different ids, so that stretches of them come again.
        ids_S = generator.integers(0, 5, PROMPT + answer)
        processors = reference(content, ids_S[:PROMPT])
        expected = processors(torch.from_numpy(ids_S)[None], torch.from_numpy(logits_V)[None])[0].numpy()
        found = process_logits(logits_V, Context(ids_S=ids_S, prompt_tokens=PROMPT, settings=ours))
        assert np.array_equal(np.isneginf(found), np.isneginf(expected))
        assert np.allclose(found, expected, rtol=2e-6, atol=1e-6)
        shares = [np.exp(scores - scores.max()) for scores in (found, expected)]
        assert np.allclose(shares[0] / shares[0].sum(), shares[1] / shares[1].sum(), atol=1e-6)
        changed += not np.array_equal(found, logits_V)
    assert changed or answer not in STEPS_AT.get(next(iter(options)), (answer,))


# Where an option does something; elsewhere it must leave the scores alone, as in transformers.
STEPS_AT = {
    "min_length": (0, 1),
    "min_new_tokens": (0, 1),
    "forced_eos_token_id": (9,),
    "begin_suppress_tokens": (0,),
    "exponential_decay_length_penalty": (5, 9),
    "do_sample": (),
}


def test_logits_that_are_no_number() -> None:
    ours = read_generation_config({"remove_invalid_values": True})
    logits_V = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    found = process_logits(logits_V, Context(ids_S=np.zeros(3, np.int64), prompt_tokens=3, settings=ours))
    largest = np.finfo(np.float32).max
    assert found.tolist() == [0.0, largest, -largest, 1.5]


def test_a_prompt_of_one_token_can_force_the_first() -> None:
    ours = GenerationSettings(forced_bos_token_id=2, begin_suppress_tokens=(3,))
    logits_V = np.arange(4, dtype=np.float32)
    first = process_logits(logits_V, Context(ids_S=np.array([0]), prompt_tokens=1, settings=ours))
    assert first.tolist() == [-np.inf, -np.inf, 0.0, -np.inf]
    second = process_logits(logits_V, Context(ids_S=np.array([0, 2]), prompt_tokens=1, settings=ours))
    assert second.tolist() == [0.0, 1.0, 2.0, -np.inf]


def test_logits_are_left_as_they_were() -> None:
    logits_V = np.arange(6, dtype=np.float32) - 3
    settings = GenerationSettings(
        do_sample=True, repetition_penalty=2.0, top_k=2, top_p=0.5, temperature=2.0, suppress_tokens=(1,)
    )
    process_logits(logits_V, Context(ids_S=np.array([0, 5]), prompt_tokens=1, settings=settings))
    assert np.array_equal(logits_V, np.arange(6) - 3)


def test_greedy_takes_the_largest_whatever_the_sampler_is_set_to() -> None:
    logits_V = np.array([0.0, 5.0, 4.9], np.float32)
    settings = GenerationSettings(do_sample=False, temperature=0.0, top_k=1, top_p=0.1)
    for penalty, token in ((1.0, 1), (1.1, 2)):
        penalised = settings.overridden({"repetition_penalty": penalty})
        context = Context(ids_S=np.array([1]), prompt_tokens=1, settings=penalised)
        assert choose_token(process_logits(logits_V, context), settings, np.random.default_rng(0)) == token
