"""From a query to an answer: prefill once, then one token a step, the text given out as it comes.

parts -> Prompt (ids, image features, positions) -> prefill -> token -> decode -> token -> ... -> Answer
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.positions import Positions
from edge.prompt import PromptEncoder
from edge.sampling import GenerationSettings, choose_token, process_logits
from edge.session import Sessions, Step
from edge.textstream import TextStream

# The decoder gives logits for every position: a long prompt in one run would need gigabytes for them.
PREFILL_TOKENS = 512

StopReason = Literal["eos", "length", "stop_string"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A query, ready for the decoder."""

    ids_S: NDArray[np.int64]
    positions: Positions
    pixel_values_NE: NDArray[np.float32]
    grid_I3: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer with its times in seconds."""

    text: str
    """Without special tokens, and ending before a stop string."""
    token_ids: tuple[int, ...]
    """Every token that was generated, the end-of-turn token included where it was."""
    prompt_tokens: int
    """With image tokens."""
    first_token_s: float
    """From the query to the first token: preprocessing, image encoder, prefill and choice."""
    decode_s: float
    """From the first token to the last: `len(token_ids) - 1` steps."""
    stop: StopReason

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed; None where there was one token only."""
        steps = len(self.token_ids) - 1
        return steps / self.decode_s if steps and self.decode_s > 0 else None


class AnswerStream:
    """Iterate over the pieces of an answer's text; `answer` is there when the last one was given.

    A piece never ends within a character, and all pieces together are the answer's text.
    """

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        self._answer = yield from self._pieces

    @property
    def answer(self) -> Answer:
        """The whole answer; what was not iterated over yet is generated now."""
        if self._answer is None:
            for _ in self:
                pass
        assert self._answer is not None
        return self._answer


def embed_prompt(sessions: Sessions, prompt: Prompt, *, image_token: int) -> NDArray[np.float32]:
    """Embeddings_SD of a prompt, image features in the place of image tokens."""
    embeds_SD = sessions.embed(prompt.ids_S)
    features_MD = sessions.encode_images(prompt.pixel_values_NE, prompt.grid_I3)
    if len(features_MD):
        embeds_SD[prompt.ids_S == image_token] = features_MD
    return embeds_SD


def forced_logits(
    sessions: Sessions, prompt: Prompt, answer_ids: Sequence[int], *, image_token: int
) -> NDArray[np.float32]:
    """Logits of a given answer, in one run: row i predicts `answer_ids[i]`, the last one what follows.

    Returns:
        logits of shape [len(answer_ids) + 1, vocabulary].
    """
    answer_A = np.array(answer_ids, dtype=np.int64)
    embeds_SD = embed_prompt(sessions, prompt, image_token=image_token)
    positions_3S = prompt.positions.ids_3S
    if len(answer_A):
        embeds_SD = np.concatenate([embeds_SD, sessions.embed(answer_A)])
        more_3A = prompt.positions.next(len(prompt.ids_S), len(answer_A))
        positions_3S = np.concatenate([positions_3S, more_3A], axis=1)
    step = sessions.decode(embeds_SD, positions_3S, sessions.empty_cache())
    return step.logits_SV[len(prompt.ids_S) - 1 :]


def generate(
    sessions: Sessions,
    encoder: PromptEncoder,
    prompt: Prompt,
    settings: GenerationSettings,
    *,
    image_token: int,
    asked_at: float,
) -> Generator[str, None, Answer]:
    """Yield pieces of text; return the answer.

    Args:
        sessions: the graphs.
        encoder: its tokenizer turns tokens into text.
        prompt: the query.
        settings: when to stop and how tokens are chosen.
        image_token: the id that stands for image features.
        asked_at: `time.perf_counter()` when the query came, for the time to the first token.
    """
    random = np.random.default_rng(settings.seed)
    stream = TextStream(encoder.decode, settings.stop_strings)
    tokens: list[int] = []
    prompt_tokens = len(prompt.ids_S)
    embeds_SD = embed_prompt(sessions, prompt, image_token=image_token)
    step = _prefill(sessions, embeds_SD, prompt.positions.ids_3S)
    first_at = asked_at
    stop: StopReason | None = None
    while stop is None:
        seen = np.concatenate([prompt.ids_S, np.array(tokens, dtype=np.int64)])
        token = choose_token(process_logits(step.logits_SV[-1], seen, settings), settings, random)
        tokens.append(token)
        last_at = time.perf_counter()
        if len(tokens) == 1:
            first_at = last_at
        if token in settings.eos_token_ids:
            stop = "eos"
            break
        if piece := stream.push(token):
            yield piece
        if stream.stopped:
            stop = "stop_string"
        elif len(tokens) == settings.max_new_tokens:
            stop = "length"
        else:
            place = prompt_tokens + len(tokens) - 1
            embeds_1D = sessions.embed(np.array([token], dtype=np.int64))
            step = sessions.decode(embeds_1D, prompt.positions.next(place), step.cache)
    if piece := stream.finish():
        yield piece
    return Answer(
        text=stream.text,
        token_ids=tuple(tokens),
        prompt_tokens=prompt_tokens,
        first_token_s=first_at - asked_at,
        decode_s=last_at - first_at,
        stop="stop_string" if stream.stopped else stop,
    )


def _prefill(sessions: Sessions, embeds_SD: NDArray[np.float32], positions_3S: NDArray[np.int64]) -> Step:
    """Run the prompt, piece by piece where it is long; the logits are those of the last piece."""
    cache = sessions.empty_cache()
    for start in range(0, len(embeds_SD), PREFILL_TOKENS):
        piece = slice(start, start + PREFILL_TOKENS)
        step = sessions.decode(embeds_SD[piece], positions_3S[:, piece], cache)
        cache = step.cache
    return step
