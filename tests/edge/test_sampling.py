"""Scores against transformers' own processors, draws against their probabilities."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import GenerationConfig

from edge import sampling
from edge.sampling import GenerationSettings, choose_token, read_generation_config
from genrecal.core.errors import BuildError, ConfigError


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
    same = "do_sample temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty"
    more = "encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size min_length"
    for name in f"{same} {more} min_new_tokens remove_invalid_values renormalize_logits".split():
        assert getattr(found, name) == getattr(reference, name), name
    assert read_generation_config(reference.to_dict()) == found
    assert found.eos_token_ids == () and read_generation_config({"eos_token_id": 3}).eos_token_ids == (3,)


def test_every_setting_of_transformers_is_known() -> None:
    """Each is read, has no effect on an answer, or is refused when it is on."""
    for name in vars(GenerationConfig()):
        known = [name in table for table in (sampling._READERS, sampling._NO_EFFECT, sampling._NOT_HERE)]
        assert sum(known) == 1, name


def test_every_value_reaches_its_field() -> None:
    content = {
        "max_new_tokens": 7,
        "max_time": 2.5,
        "min_p": 0.1,
        "bad_words_ids": [[3, 4], [5]],
        "sequence_bias": [[[3, 4], -2.0]],
        "suppress_tokens": [1, 2],
        "forced_eos_token_id": 9,
        "exponential_decay_length_penalty": [5, 1.1],
        "stop_strings": "end",
    }
    found = read_generation_config(content)
    assert (found.max_new_tokens, found.max_time, found.min_p) == (7, 2.5, 0.1)
    assert found.bad_words_ids == ((3, 4), (5,)) and found.sequence_bias == (((3, 4), -2.0),)
    assert found.suppress_tokens == (1, 2) and found.forced_eos_token_ids == (9,)
    assert found.exponential_decay_length_penalty == (5, 1.1) and found.stop_strings == ("end",)


def test_a_length_of_prompt_and_answer() -> None:
    """As in transformers, it counts where no number of new tokens is given."""
    assert read_generation_config({"max_length": 64}).max_length == 64
    assert read_generation_config({"max_length": 64, "max_new_tokens": 3}).max_length is None
    assert read_generation_config({"max_length": 20}).max_length is None  # transformers' own default


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_beams": 4}, "asks for 'num_beams' = 4, which this runtime does not have"),
        ({"guidance_scale": 1.5}, "'guidance_scale' = 1.5"),
        ({"temprature": 0.5}, "holds 'temprature' = 0.5, which this runtime does not know"),
        ({"top_p": 0}, "'top_p' is 0.0, it must be above 0"),
        ({"sequence_bias": [[[3]]]}, "a value cannot be used"),
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
        ({"min_p": 2.0}, "'min_p'"),
        ({"typical_p": 0.0}, "'typical_p'"),
        ({"eta_cutoff": 1.0}, "'eta_cutoff'"),
        ({"max_time": 0}, "'max_time'"),
        ({"temperature": "hot"}, "a value has the wrong type"),
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
