"""From the logits of one position to the scores that the next token is taken by.

    biases, penalties, forbidden and forced tokens -> (greedy: the largest)
        | temperature -> top k -> top p -> min p -> typical p -> epsilon -> eta -> one draw

The order and the meaning of each step are those of transformers' logits processors; a step that the settings
leave off is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.sampling import GenerationSettings

Scores = NDArray[np.float32]
_MINUS_INFINITY = np.float32(-np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What came before the token that is to be chosen."""

    ids_S: NDArray[np.int64]
    """Of the prompt, image tokens included, and of the answer so far."""
    prompt_tokens: int
    settings: GenerationSettings

    @property
    def new_tokens(self) -> int:
        return len(self.ids_S) - self.prompt_tokens

    @property
    def prompt_ids(self) -> NDArray[np.int64]:
        return self.ids_S[: self.prompt_tokens]

    @property
    def last_place(self) -> bool:
        """Whether the next token is the last one that the limits leave room for."""
        limit = self.prompt_tokens + self.settings.max_new_tokens
        if self.settings.max_length is not None:
            limit = min(limit, self.settings.max_length)
        return len(self.ids_S) >= limit - 1


def process_logits(logits_V: Scores, context: Context) -> Scores:
    """The scores that the next token is taken by; what is ruled out is -inf. `logits_V` stays as it is."""
    settings = context.settings
    scores_V = logits_V
    for is_on, step in STEPS:
        if is_on(settings):
            scores_V = step(scores_V, context)
    return scores_V


def _sequence_bias(scores_V: Scores, context: Context) -> Scores:
    return _biased(scores_V, context, dict(context.settings.sequence_bias))


def _bad_words(scores_V: Scores, context: Context) -> Scores:
    ends = {(token,) for token in context.settings.eos_token_ids}
    words = [word for word in context.settings.bad_words_ids if word not in ends]
    return _biased(scores_V, context, dict.fromkeys(words, -np.inf))


def _biased(scores_V: Scores, context: Context, biases: dict[tuple[int, ...], float]) -> Scores:
    bias_V = np.zeros_like(scores_V)
    for sequence, bias in biases.items():
        before = np.array(sequence[:-1], dtype=np.int64)
        if len(sequence) == 1:
            bias_V[sequence[0]] = bias
        elif len(sequence) <= len(context.ids_S) and (context.ids_S[-len(before) :] == before).all():
            bias_V[sequence[-1]] += np.float32(bias)
    return scores_V + bias_V


def _penalised(scores_V: Scores, ids: NDArray[np.int64], penalty: float) -> Scores:
    scores_V, factor = scores_V.copy(), np.float32(penalty)
    old = scores_V[ids]
    scores_V[ids] = np.where(old < 0, old * factor, old / factor)
    return scores_V


def _encoder_repetition_penalty(scores_V: Scores, context: Context) -> Scores:
    return _penalised(scores_V, context.prompt_ids, 1 / context.settings.encoder_repetition_penalty)


def _repetition_penalty(scores_V: Scores, context: Context) -> Scores:
    return _penalised(scores_V, context.ids_S, context.settings.repetition_penalty)


def _no_repeat_ngram(scores_V: Scores, context: Context) -> Scores:
    size = context.settings.no_repeat_ngram_size
    return _without(scores_V, _continuations(context.ids_S, context.ids_S, size))


def _encoder_no_repeat_ngram(scores_V: Scores, context: Context) -> Scores:
    size = context.settings.encoder_no_repeat_ngram_size
    return _without(scores_V, _continuations(context.prompt_ids, context.ids_S, size))


def _continuations(known: NDArray[np.int64], ids_S: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """What follows, anywhere in `known`, the last size - 1 tokens of `ids_S`."""
    if len(ids_S) + 1 < size or len(known) < size:
        return np.zeros(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(known, size)
    last = ids_S[len(ids_S) + 1 - size :]
    return windows[(windows[:, :-1] == last).all(axis=1), -1]


def _without(scores_V: Scores, ids: NDArray[np.int64] | tuple[int, ...]) -> Scores:
    scores_V = scores_V.copy()
    scores_V[np.asarray(ids, dtype=np.int64)] = _MINUS_INFINITY
    return scores_V


def _min_length(scores_V: Scores, context: Context) -> Scores:
    settings = context.settings
    early = len(context.ids_S) < settings.min_length or context.new_tokens < (settings.min_new_tokens or 0)
    return _without(scores_V, settings.eos_token_ids) if early else scores_V


def _forced(scores_V: Scores, ids: tuple[int, ...]) -> Scores:
    forced_V = np.full_like(scores_V, _MINUS_INFINITY)
    forced_V[list(ids)] = 0
    return forced_V


def _forced_bos(scores_V: Scores, context: Context) -> Scores:
    token = context.settings.forced_bos_token_id
    return _forced(scores_V, (token,)) if token is not None and len(context.ids_S) == 1 else scores_V


def _forced_eos(scores_V: Scores, context: Context) -> Scores:
    return _forced(scores_V, context.settings.forced_eos_token_ids) if context.last_place else scores_V


def _remove_invalid(scores_V: Scores, context: Context) -> Scores:
    return np.nan_to_num(scores_V, nan=0.0)  # infinities become the largest and the smallest number


def _exponential_decay(scores_V: Scores, context: Context) -> Scores:
    start, factor = context.settings.exponential_decay_length_penalty or (0, 1.0)
    over = context.new_tokens - start
    if over <= 0:
        return scores_V
    scores_V, ends = scores_V.copy(), list(context.settings.eos_token_ids)
    scores_V[ends] += np.abs(scores_V[ends]) * np.float32(factor**over - 1)
    return scores_V


def _suppress(scores_V: Scores, context: Context) -> Scores:
    return _without(scores_V, context.settings.suppress_tokens)


def _begin_suppress(scores_V: Scores, context: Context) -> Scores:
    # Behind a token that was forced on a prompt of one token, the answer begins one token later.
    settings = context.settings
    forced = context.prompt_tokens <= 1 and settings.forced_bos_token_id is not None
    begins = context.new_tokens == int(forced)
    return _without(scores_V, settings.begin_suppress_tokens) if begins else scores_V


def _temperature(scores_V: Scores, context: Context) -> Scores:
    return scores_V / np.float32(context.settings.temperature)


def _top_k(scores_V: Scores, context: Context) -> Scores:
    k = context.settings.top_k
    if k >= len(scores_V):
        return scores_V
    return _dropped(scores_V, scores_V < np.partition(scores_V, -k)[-k])


def _top_p(scores_V: Scores, context: Context) -> Scores:
    # Sorting a whole vocabulary takes longer than a small decoder's step; top k has left few.
    allowed = np.flatnonzero(scores_V > _MINUS_INFINITY)
    order = allowed[np.argsort(scores_V[allowed], kind="stable")]
    below = np.cumsum(_softmax(scores_V[order])) <= 1 - context.settings.top_p
    below[-1:] = False
    return _without(scores_V, order[below])


def _min_p(scores_V: Scores, context: Context) -> Scores:
    shares_V = _softmax(scores_V)
    return _dropped(scores_V, shares_V < np.float32(context.settings.min_p) * shares_V.max())


def _typical_p(scores_V: Scores, context: Context) -> Scores:
    log_V = _log_softmax(scores_V)
    shares_V = np.exp(log_V)
    with np.errstate(invalid="ignore"):  # 0 * -inf: a token that is ruled out adds nothing
        entropy = -np.nansum(log_V * shares_V)
    distance_V = np.abs(-log_V - entropy)
    order = np.argsort(distance_V, kind="stable")
    last = int((np.cumsum(shares_V[order]) < context.settings.typical_p).sum())
    drop_V = distance_V > distance_V[order[min(last, len(order) - 1)]]
    drop_V[order[0]] = False
    # The likeliest token is dropped like any other where it tells less than the rest would.
    return np.where(drop_V, _MINUS_INFINITY, scores_V)


def _epsilon(scores_V: Scores, context: Context) -> Scores:
    return _dropped(scores_V, _softmax(scores_V) < context.settings.epsilon_cutoff)


def _eta(scores_V: Scores, context: Context) -> Scores:
    epsilon, log_V = context.settings.eta_cutoff, _log_softmax(scores_V)
    shares_V = np.exp(log_V)
    entropy = -(np.maximum(log_V, np.finfo(np.float32).min) * shares_V).sum()
    return _dropped(scores_V, shares_V < min(epsilon, float(np.sqrt(epsilon) * np.exp(-entropy))))


def _renormalize(scores_V: Scores, context: Context) -> Scores:
    return _log_softmax(scores_V)


def _dropped(scores_V: Scores, drop_V: NDArray[np.bool_]) -> Scores:
    """Without the marked tokens; the likeliest ones stay whatever is marked."""
    return np.where(drop_V & (scores_V < scores_V.max()), _MINUS_INFINITY, scores_V)


def _log_softmax(scores_V: Scores) -> Scores:
    shifted_V = scores_V - scores_V.max()
    return shifted_V - np.log(np.exp(shifted_V).sum())


def _softmax(scores: Scores) -> Scores:
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()


# when a step is on, and the step, in transformers' order
STEPS: tuple[tuple[Callable[[GenerationSettings], bool], Callable[[Scores, Context], Scores]], ...] = (
    (lambda s: bool(s.sequence_bias), _sequence_bias),
    (lambda s: s.encoder_repetition_penalty != 1.0, _encoder_repetition_penalty),
    (lambda s: s.repetition_penalty != 1.0, _repetition_penalty),
    (lambda s: s.no_repeat_ngram_size > 0, _no_repeat_ngram),
    (lambda s: s.encoder_no_repeat_ngram_size > 0, _encoder_no_repeat_ngram),
    (lambda s: bool(s.bad_words_ids), _bad_words),
    (lambda s: s.min_length > 0 or bool(s.min_new_tokens), _min_length),
    (lambda s: s.forced_bos_token_id is not None, _forced_bos),
    (lambda s: bool(s.forced_eos_token_ids), _forced_eos),
    (lambda s: s.remove_invalid_values, _remove_invalid),
    (lambda s: s.exponential_decay_length_penalty is not None, _exponential_decay),
    (lambda s: bool(s.suppress_tokens), _suppress),
    (lambda s: bool(s.begin_suppress_tokens), _begin_suppress),
    (lambda s: s.do_sample and s.temperature != 1.0, _temperature),
    (lambda s: s.do_sample and s.top_k > 0, _top_k),
    (lambda s: s.do_sample and s.top_p < 1.0, _top_p),
    (lambda s: s.do_sample and s.min_p is not None, _min_p),
    (lambda s: s.do_sample and s.typical_p < 1.0, _typical_p),
    (lambda s: s.do_sample and s.epsilon_cutoff > 0, _epsilon),
    (lambda s: s.do_sample and s.eta_cutoff > 0, _eta),
    (lambda s: s.renormalize_logits, _renormalize),
)
