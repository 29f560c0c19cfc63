"""From a query to an answer: prefill once, then one token a step, the text given out as it comes.

    parts -> Prompt (ids, images, positions) -> slot of the longest known beginning -> prefill of the rest
          -> token -> decode -> token -> ... -> Answer

Shapes: S tokens of the prompt, A axes of positions, D hidden, B rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.cache import KeyValues
from edge.logits import Context, process_logits
from edge.memory import Budget
from edge.pictures import Look, Pictures
from edge.positions import Positions
from edge.prompt import PromptEncoder
from edge.sampling import GenerationSettings, choose_token
from edge.session import Sessions
from edge.slots import Slots, Span
from edge.textstream import TextStream

# Tokens of a prompt that run at a time: more would take more memory for scores and no less time.
PREFILL_TOKENS = 512
# A buffer first has room for so many tokens of the answer, and grows where an answer is longer.
ANSWER_TOKENS = 256

StopReason = Literal["eos", "length", "stop_string", "time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A query, ready for the decoder."""

    ids_S: NDArray[np.int64]
    positions: Positions
    looks: tuple[Look, ...]
    """Its images in their order."""
    is_image_S: NDArray[np.bool_]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where each image begins."""
        places, before = np.flatnonzero(self.is_image_S), 0
        spans = []
        for look in self.looks:
            spans.append(Span(start=int(places[before]), digest=look.digest))
            before += look.tokens
        return tuple(spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer with its times in seconds."""

    text: str
    """Without special tokens, and ending before a stop string."""
    token_ids: tuple[int, ...]
    """Every token that was generated, the end-of-turn token included where it was."""
    prompt_tokens: int
    """With image tokens."""
    reused_tokens: int
    """Tokens of the prompt whose keys and values were there already."""
    prepare_s: float
    """Preprocessing of images, chat template, tokenizer."""
    vision_s: float
    """The vision encoder; next to nothing where the features were kept."""
    prefill_s: float
    """The prompt in the decoder."""
    first_token_s: float
    """From the query to the first token: all of these and the choice."""
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

    def close(self) -> None:
        """Stop generating; what was computed is kept for later questions."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; what was not iterated over yet is generated now."""
        if self._answer is None:
            for _ in self:
                pass
        assert self._answer is not None
        return self._answer


class Row:
    """One answer in the making: its tokens, its text and why it ended."""

    def __init__(
        self,
        prompt: Prompt,
        settings: GenerationSettings,
        encoder: PromptEncoder,
        *,
        asked_at: float,
        room: int,
    ) -> None:
        self.prompt, self.settings = prompt, settings
        self.tokens: list[int] = []
        self.stop: StopReason | None = None
        self.reused_tokens = 0
        self.vision_s = self.prefill_s = 0.0
        self.prepared_at = time.perf_counter()
        self._asked_at = self._first_at = self._last_at = asked_at
        self._random = np.random.default_rng(settings.seed)
        self._stream = TextStream(encoder.decode, settings.stop_strings)
        limits = [settings.max_new_tokens, room - len(prompt.ids_S)]
        if settings.max_length is not None:
            limits.append(settings.max_length - len(prompt.ids_S))
        self.limit = max(1, min(limits))

    @property
    def ids(self) -> NDArray[np.int64]:
        """Of prompt and answer so far."""
        return np.concatenate([self.prompt.ids_S, np.array(self.tokens, dtype=np.int64)])

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions_A1 of the last token."""
        return self.prompt.positions.next(len(self.prompt.ids_S) + len(self.tokens) - 1)

    def push(self, logits_V: NDArray[np.float32]) -> str:
        """Choose the next token; returns the text that became final by it, possibly none."""
        settings = self.settings
        context = Context(ids_S=self.ids, prompt_tokens=len(self.prompt.ids_S), settings=settings)
        token = choose_token(process_logits(logits_V, context), settings, self._random)
        self.tokens.append(token)
        self._last_at = time.perf_counter()
        if len(self.tokens) == 1:
            self._first_at = self._last_at
        piece = ""
        if token in settings.eos_token_ids:
            self.stop = "eos"
        else:
            piece = self._stream.push(token)
            if self._stream.stopped:
                self.stop = "stop_string"
            elif len(self.tokens) >= self.limit:
                self.stop = "length"
            elif settings.max_time is not None and self._last_at - self._asked_at > settings.max_time:
                self.stop = "time"
        if self.stop:
            piece += self._stream.finish()
            self.stop = "stop_string" if self._stream.stopped else self.stop
        return piece

    def answer(self) -> Answer:
        assert self.stop is not None
        return Answer(
            text=self._stream.text,
            token_ids=tuple(self.tokens),
            prompt_tokens=len(self.prompt.ids_S),
            reused_tokens=self.reused_tokens,
            prepare_s=self.prepared_at - self._asked_at,
            vision_s=self.vision_s,
            prefill_s=self.prefill_s,
            first_token_s=self._first_at - self._asked_at,
            decode_s=self._last_at - self._first_at,
            stop=self.stop,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMaker:
    """What generating takes; one object serves one thread."""

    sessions: Sessions
    encoder: PromptEncoder
    pictures: Pictures
    slots: Slots
    budget: Budget

    def row(self, prompt: Prompt, settings: GenerationSettings, asked_at: float) -> Row:
        self.budget.check_context(len(prompt.ids_S) + 1)
        return Row(prompt, settings, self.encoder, asked_at=asked_at, room=self.budget.max_context)

    def generate(
        self, prompt: Prompt, settings: GenerationSettings, *, asked_at: float
    ) -> Generator[str, None, Answer]:
        """Yield pieces of text; return the answer.

        Args:
            prompt: the query.
            settings: when to stop and how tokens are chosen.
            asked_at: `time.perf_counter()` when the query came, for the time to the first token.

        Raises:
            DataError: the prompt is longer than the device and the model allow.
        """
        row, spans = self.row(prompt, settings, asked_at), prompt.spans
        places = len(prompt.ids_S) + min(row.limit, ANSWER_TOKENS)
        slot, row.reused_tokens = self.slots.take(prompt.ids_S, spans, places)
        try:
            logits_V = self._prefill(row, slot.cache, start=row.reused_tokens)
            while True:
                if piece := row.push(logits_V):
                    yield piece
                if row.stop is not None:
                    return row.answer()
                slot.cache.reserve(slot.cache.lengths[0] + 1)
                embeds_11D = self.sessions.embed(np.array([row.tokens[-1:]], dtype=np.int64))
                logits_V = self.sessions.decode(embeds_11D, row.positions[:, None], slot.cache)[0, 0]
        finally:
            self.slots.give_back(slot, row.ids, spans)

    def generate_batch(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, *, asked_at: float
    ) -> list[Answer]:
        """Answers to several queries, decoded together; each ends by itself.

        Raises:
            DataError: together they are longer than the device allows.
        """
        rows = [self.row(prompt, settings, asked_at) for prompt in prompts]
        places = max(len(row.prompt.ids_S) + row.limit for row in rows)
        self.budget.check_batch(len(rows), places)
        cache = KeyValues(self.sessions.layout, len(rows), places)
        for number, row in enumerate(rows):
            row.push(self._prefill(row, cache, row_number=number))
        while any(row.stop is None for row in rows):
            for number, row in enumerate(rows):
                # A row that has ended writes its last token again, in the same place, and is not read.
                cache.lengths[number] = len(row.prompt.ids_S) + len(row.tokens) - 1
            tokens_B1 = np.array([row.tokens[-1:] for row in rows], dtype=np.int64)
            positions_AB1 = np.stack([row.positions for row in rows], axis=1)
            logits_B1V = self.sessions.decode(self.sessions.embed(tokens_B1), positions_AB1, cache)
            for row, logits_1V in zip(rows, logits_B1V, strict=True):
                if row.stop is None:
                    row.push(logits_1V[0])
        return [row.answer() for row in rows]

    def embed(self, prompt: Prompt, *, start: int = 0) -> NDArray[np.float32]:
        """Embeddings_1SD of a prompt from token `start` on, image features in the place of image tokens."""
        embeds_1SD = self.sessions.embed(prompt.ids_S[None, start:])
        skipped = int(prompt.is_image_S[:start].sum())
        parts, before = [], 0
        for look in prompt.looks:
            if before + look.tokens > skipped:
                parts.append(self.pictures.features(look)[max(0, skipped - before) :])
            before += look.tokens
        if parts:
            embeds_1SD[0, prompt.is_image_S[start:]] = np.concatenate(parts)
        return embeds_1SD

    def forced_logits(self, prompt: Prompt, answer_ids: Sequence[int]) -> NDArray[np.float32]:
        """logits_AV of a given answer, in one run, A = len(answer_ids) + 1: row i predicts
        `answer_ids[i]`, the last one what follows."""
        answer_1A = np.array([answer_ids], dtype=np.int64)
        embeds_1SD, positions_AS = self.embed(prompt), prompt.positions.ids_AS
        if answer_1A.size:
            embeds_1SD = np.concatenate([embeds_1SD, self.sessions.embed(answer_1A)], axis=1)
            more = prompt.positions.next(len(prompt.ids_S), answer_1A.size)
            positions_AS = np.concatenate([positions_AS, more], axis=1)
        self.budget.check_context(embeds_1SD.shape[1])
        cache = KeyValues(self.sessions.layout, 1, embeds_1SD.shape[1])
        return self.sessions.decode(embeds_1SD, positions_AS[:, None], cache, keep=answer_1A.size + 1)[0]

    def _prefill(
        self, row: Row, cache: KeyValues, *, start: int = 0, row_number: int = 0
    ) -> NDArray[np.float32]:
        """Run the prompt from token `start` on, piece by piece where it is long; logits_V of its end."""
        began = time.perf_counter()
        embeds_1SD = self.embed(row.prompt, start=start)
        positions_AS = row.prompt.positions.ids_AS[:, start:]
        encoded = time.perf_counter()
        for place in range(0, embeds_1SD.shape[1], PREFILL_TOKENS):
            piece = slice(place, place + PREFILL_TOKENS)
            logits_11V = self.sessions.decode(
                embeds_1SD[:, piece], positions_AS[:, None, piece], cache, row=row_number
            )
        row.vision_s, row.prefill_s = encoded - began, time.perf_counter() - encoded
        return logits_11V[0, 0]
