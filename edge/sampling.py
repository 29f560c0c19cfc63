"""From the logits of one position to the next token, by a build's own generation settings.

    repetition penalty -> (greedy: the largest) | temperature -> top k -> top p -> one draw

The order and the meaning of each number are those of transformers, so that a checkpoint and its build
answer by the same rules.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrecal.core.errors import BuildError, ConfigError

# What transformers takes where generation_config.json says nothing.
_TOP_K = 50
# Where neither the file nor the caller says how long an answer may be.
_MAX_NEW_TOKENS = 256
# Settings of transformers that change the answer and that are not here -> the value that switches them off.
_NOT_HERE: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "min_new_tokens": None,
    "min_p": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "penalty_alpha": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How tokens are chosen and when an answer ends.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_new_tokens: int = _MAX_NEW_TOKENS
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = _TOP_K
    """Keep this many of the likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the prompt or the answer already holds become less likely."""
    stop_strings: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    seed: int | None = 0
    """Of the draws of one answer; None draws differently each time."""
    eos_token_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        good = math.isfinite(self.temperature) and self.temperature > 0
        _check("temperature", self.temperature, good or not self.do_sample, "above 0")
        _check("top_k", self.top_k, self.top_k >= 0, "0 or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0")
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
        return replace(self, **overrides)


def read_generation_config(content: Mapping[str, Any]) -> GenerationSettings:
    """Read a `generation_config.json`.

    What it leaves out has transformers' default, but for the length: transformers' own default, 20 tokens
    with the prompt, would cut every answer, so that it is 256 new tokens here.

    Raises:
        BuildError: it asks for a way of generating that this runtime does not have, or a value is no number.
    """
    where = "generation_config.json"
    for name, off in _NOT_HERE.items():
        if content.get(name) not in (None, off):
            raise BuildError(
                f"asks for '{name}' = {content[name]}, which this runtime does not have",
                where=where,
                fix="Remove it from the student's generation settings and export again",
            )
    eos, stop = content.get("eos_token_id"), content.get("stop_strings") or ()

    def value(name: str, default: Any) -> Any:
        return default if content.get(name) is None else content[name]

    try:
        return GenerationSettings(
            max_new_tokens=int(value("max_new_tokens", _MAX_NEW_TOKENS)),
            do_sample=bool(value("do_sample", False)),
            temperature=float(value("temperature", 1.0)),
            top_k=int(value("top_k", _TOP_K)),
            top_p=float(value("top_p", 1.0)),
            repetition_penalty=float(value("repetition_penalty", 1.0)),
            stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
        )
    except (TypeError, ValueError) as error:
        raise BuildError(f"a value cannot be used ({error})", where=where) from None
    except ConfigError as error:
        raise BuildError(error.what, where=where) from None


def process_logits(
    logits_V: NDArray[np.float32], seen: NDArray[np.int64], settings: GenerationSettings
) -> NDArray[np.float32]:
    """The scores that the next token is taken by; ruled out tokens are -inf.

    Args:
        logits_V: of the last position.
        seen: ids of the prompt and of the answer so far, image tokens included.
        settings: of the build, with the caller's overrides.
    """
    scores_V = logits_V
    if settings.repetition_penalty != 1.0:
        scores_V = scores_V.copy()
        penalty = np.float32(settings.repetition_penalty)
        old = scores_V[seen]
        scores_V[seen] = np.where(old < 0, old * penalty, old / penalty)
    if not settings.do_sample:
        return scores_V
    scores_V = scores_V / np.float32(settings.temperature)
    if 0 < settings.top_k < len(scores_V):
        least = np.partition(scores_V, -settings.top_k)[-settings.top_k]
        scores_V = np.where(scores_V < least, np.float32(-np.inf), scores_V)
    if settings.top_p < 1.0:
        # Sorting a whole vocabulary takes longer than a small decoder's step; top k has left few.
        allowed = np.flatnonzero(scores_V > -np.inf)
        order = allowed[np.argsort(scores_V[allowed], kind="stable")]
        below = np.cumsum(_softmax(scores_V[order])) <= 1 - settings.top_p
        below[-1] = False
        scores_V = scores_V.copy()
        scores_V[order[below]] = -np.inf
    return scores_V


def choose_token(
    scores_V: NDArray[np.float32], settings: GenerationSettings, generator: np.random.Generator
) -> int:
    """The token with the largest score, or one drawn by the scores."""
    if not settings.do_sample:
        return int(np.argmax(scores_V))
    cumulative_V = np.cumsum(_softmax(scores_V.astype(np.float64)))
    # The draw lies below the last sum, so rounding cannot carry it past the last token that is allowed.
    draw = generator.random() * cumulative_V[-1]
    return int(np.searchsorted(cumulative_V, draw, side="right"))


def _softmax(scores: NDArray[Any]) -> NDArray[Any]:
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()


def _check(name: str, value: Any, good: bool, range_: str) -> None:
    if not good:
        raise ConfigError(f"'{name}' is {value}, it must be {range_}", where="generation settings")
