"""How an answer is generated: a build's own settings, what a caller puts over them, and the draw of a token.

Names and meanings are those of transformers' `generation_config.json`, so that a checkpoint and its build
answer by the same rules; `logits.py` applies them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrecal.core.errors import BuildError, ConfigError

# What transformers takes where generation_config.json says nothing.
_TOP_K = 50
# Where neither the file nor the caller says how long an answer may be.
_MAX_NEW_TOKENS = 256
# transformers' default of `max_length`; a file that holds it says nothing.
_DEFAULT_MAX_LENGTH = 20
# Settings of transformers that change the answer and that are not here -> the values that switch them off.
_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0.0,),
    "constraints": (),
    "force_words_ids": (),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "watermarking_config": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "token_healing": (False,),
}
# Settings that say how transformers computes, not what it answers; and who wrote the file.
_NO_EFFECT = {
    "_commit_hash",
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "return_legacy_cache",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How tokens are chosen and when an answer ends. A setting that is None is off.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_new_tokens: int = _MAX_NEW_TOKENS
    max_length: int | None = None
    """Of prompt and answer together; an answer ends at this limit or at `max_new_tokens`."""
    max_time: float | None = None
    """Seconds after which an answer ends with the token that is being computed."""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = _TOP_K
    """Keep this many of the likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    min_p: float | None = None
    """Drop tokens that are less likely than this share of the likeliest one's probability."""
    typical_p: float = 1.0
    """Keep the tokens nearest to the entropy that together reach this probability."""
    epsilon_cutoff: float = 0.0
    """Drop tokens that are less likely than this."""
    eta_cutoff: float = 0.0
    """The same with a threshold that falls where many tokens are possible."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the prompt or the answer already holds become less likely."""
    encoder_repetition_penalty: float = 1.0
    """Above 1, tokens that the prompt holds become more likely."""
    no_repeat_ngram_size: int = 0
    """No stretch of so many tokens comes twice, the prompt's included."""
    encoder_no_repeat_ngram_size: int = 0
    """No stretch of so many tokens of the prompt comes again."""
    min_length: int = 0
    """No end before prompt and answer have so many tokens."""
    min_new_tokens: int | None = None
    """No end before the answer has so many tokens."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that the answer never holds."""
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Sequences of tokens and what is added to the score of their last one."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that the answer never holds."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Tokens that the answer does not begin with."""
    forced_bos_token_id: int | None = None
    """The first token of the answer where the prompt has one token alone."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """What an answer ends with that reaches its greatest length."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """After so many tokens, the end becomes likelier by this factor with each."""
    remove_invalid_values: bool = False
    """Take scores that are no number for 0 instead of failing."""
    renormalize_logits: bool = False
    """Scores become log-probabilities at the end."""
    stop_strings: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    seed: int | None = 0
    """Of the draws of one answer; None draws differently each time."""
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "at least 1")
        _check("max_time", self.max_time, self.max_time is None or self.max_time > 0, "above 0")
        good = math.isfinite(self.temperature) and self.temperature > 0
        _check("temperature", self.temperature, good or not self.do_sample, "above 0")
        for name in ("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check("min_new_tokens", self.min_new_tokens, (self.min_new_tokens or 0) >= 0, "0 or more")
        for name in ("top_p", "typical_p"):
            _check(name, getattr(self, name), 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1")
        for name in ("epsilon_cutoff", "eta_cutoff"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("repetition_penalty", "encoder_repetition_penalty"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        _check("bad_words_ids", self.bad_words_ids, all(self.bad_words_ids), "lists of token ids")
        good = all(sequence for sequence, _ in self.sequence_bias)
        _check("sequence_bias", self.sequence_bias, good, "pairs of token ids and a number")
        good = not isinstance(self.stop_strings, str) and all(self.stop_strings)
        _check("stop_strings", self.stop_strings, good, "a tuple of texts that are not empty")

    def overridden(self, overrides: Mapping[str, Any]) -> GenerationSettings:
        """The same settings with other values.

        Raises:
            ConfigError: an unknown name (with the nearest known one) or a value out of its range.
        """
        known = [entry.name for entry in fields(self)]
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                fix = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(known)}"
                raise ConfigError(f"unknown generation setting '{name}'", fix=fix)
        try:
            return replace(self, **overrides)
        except TypeError as error:
            raise ConfigError(f"a value has the wrong type ({error})", where="generation settings") from None


def read_generation_config(content: Mapping[str, Any]) -> GenerationSettings:
    """Read a `generation_config.json`.

    What it leaves out has transformers' default, but for the length: transformers' own default, 20 tokens
    with the prompt, would cut every answer, so that it is 256 new tokens here.

    Raises:
        BuildError: it asks for a way of generating that this runtime does not have, holds a setting that it
            does not know, or a value that is no number.
    """
    where = "generation_config.json"
    given = {name: value for name, value in content.items() if value is not None}
    for name, value in given.items():
        if name in _NOT_HERE and value not in _NOT_HERE[name]:
            raise BuildError(
                f"asks for '{name}' = {value}, which this runtime does not have",
                where=where,
                fix="Remove it from the student's generation settings and export again",
            )
        if name not in _NOT_HERE and name not in _NO_EFFECT and name not in _READERS:
            raise BuildError(
                f"holds '{name}' = {value}, which this runtime does not know",
                where=where,
                fix="Remove it from the student's generation settings and export again",
            )
    if given.get("max_length") == _DEFAULT_MAX_LENGTH or "max_new_tokens" in given:
        given.pop("max_length", None)  # as transformers: the number of new tokens goes before it
    elif "max_length" in given:
        given["max_new_tokens"] = given["max_length"]
    try:
        read = {name: _READERS[name](value) for name, value in given.items() if name in _READERS}
        return GenerationSettings(**{_FIELDS.get(name, name): value for name, value in read.items()})
    except (TypeError, ValueError) as error:
        raise BuildError(f"a value cannot be used ({error})", where=where) from None
    except ConfigError as error:
        raise BuildError(error.what, where=where) from None


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(int(entry) for entry in value) if isinstance(value, list | tuple) else (int(value),)


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((_ids(sequence), float(bias)) for sequence, bias in pairs)


# setting of the file -> how its value is read
_READERS: dict[str, Any] = {
    "max_new_tokens": int,
    "max_length": int,
    "max_time": float,
    "do_sample": bool,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "epsilon_cutoff": float,
    "eta_cutoff": float,
    "repetition_penalty": float,
    "encoder_repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "encoder_no_repeat_ngram_size": int,
    "min_length": int,
    "min_new_tokens": int,
    "bad_words_ids": lambda value: tuple(_ids(sequence) for sequence in value),
    "sequence_bias": _biases,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "forced_bos_token_id": int,
    "forced_eos_token_id": _ids,
    "exponential_decay_length_penalty": lambda value: (int(value[0]), float(value[1])),
    "remove_invalid_values": bool,
    "renormalize_logits": bool,
    "stop_strings": lambda value: (value,) if isinstance(value, str) else tuple(value),
    "eos_token_id": _ids,
}
# setting of the file -> its field, where the names differ
_FIELDS = {"eos_token_id": "eos_token_ids", "forced_eos_token_id": "forced_eos_token_ids"}


def choose_token(
    scores_V: NDArray[np.float32], settings: GenerationSettings, generator: np.random.Generator
) -> int:
    """The token with the largest score, or one drawn by the scores."""
    if not settings.do_sample:
        return int(np.argmax(scores_V))
    exponents_V = np.exp(scores_V.astype(np.float64) - float(scores_V.max()))
    cumulative_V = np.cumsum(exponents_V)
    # The draw lies below the last sum, so rounding cannot carry it past the last token that is allowed.
    draw = generator.random() * cumulative_V[-1]
    return int(np.searchsorted(cumulative_V, draw, side="right"))


def _check(name: str, value: Any, good: bool, range_: str) -> None:
    if not good:
        raise ConfigError(f"'{name}' is {value}, it must be {range_}", where="generation settings")
