"""Keys and values of earlier prompts: a prompt that begins alike goes on where they end.

    slot = buffers + the tokens whose keys and values lie in them, answers included

A prompt takes the slot that shares the longest beginning with it: the same token ids, and where these are
image tokens, the same images. The slot's tokens from there on are forgotten; where these are most of it, the
beginning is copied instead, and the slot stays as it is. The least recently used are dropped first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.cache import KeyValues, Layout, rounded

# Shorter beginnings, such as a system prompt's, are computed anew: copying costs about as much.
WORTHWHILE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where an image's tokens stand in a prompt."""

    start: int
    digest: bytes


@dataclass(slots=True, kw_only=True)
class Slot:
    """One row of keys and values, and the tokens that they are of."""

    cache: KeyValues
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    spans: tuple[Span, ...] = ()

    def shared(self, ids_S: NDArray[np.int64], spans: Sequence[Span]) -> int:
        """How many tokens at the beginning of a prompt are the slot's own."""
        length = min(len(ids_S), len(self.ids))
        equal = self.ids[:length] == ids_S[:length]
        length = length if equal.all() else int(np.argmin(equal))
        # The same ids, but of another image or from another place on: no further than where it begins.
        for span in set(self.spans) ^ set(spans):
            length = min(length, span.start)
        return length


class Slots:
    """The slots of one model.

    Args:
        layout: of the decoder's past.
        capacity_bytes: how much idle slots may take together; the one in use is not counted.
    """

    def __init__(self, layout: Layout, *, capacity_bytes: int) -> None:
        self._layout, self._capacity_bytes = layout, capacity_bytes
        self._idle: list[Slot] = []  # the least recently used first
        self.hits = 0
        """Prompts that took over a beginning."""
        self.reused_tokens = 0

    @property
    def held_bytes(self) -> int:
        return sum(slot.cache.nbytes for slot in self._idle)

    def take(self, ids_S: NDArray[np.int64], spans: Sequence[Span], places: int) -> tuple[Slot, int]:
        """A slot with room for `places` tokens, and how many tokens of the prompt it holds already.

        The last token of a prompt is always left to run: its logits are what the answer begins with.
        """
        best, shared = None, 0
        for slot in self._idle:
            length = min(slot.shared(ids_S, spans), len(ids_S) - 1)
            if length > shared:
                best, shared = slot, length
        if best is None or shared < WORTHWHILE:
            self.trim(room_bytes=rounded(places) * self._layout.token_bytes)
            return Slot(cache=KeyValues(self._layout, 1, places)), 0
        self.hits += 1
        self.reused_tokens += shared
        self._idle.remove(best)
        if 2 * shared < len(best.ids):
            copied = Slot(cache=best.cache.beginning(shared, places))
            self._idle.append(best)
            self.trim(room_bytes=copied.cache.nbytes)
            return copied, shared
        best.cache.lengths[0] = shared
        best.cache.reserve(places)
        return best, shared

    def give_back(self, slot: Slot, ids: NDArray[np.int64], spans: Sequence[Span]) -> None:
        """Keep a slot for later prompts.

        Args:
            slot: what `take` gave.
            ids: the tokens whose keys and values it holds now.
            spans: the images among them.
        """
        slot.ids = ids[: slot.cache.lengths[0]]
        slot.spans = tuple(span for span in spans if span.start < len(slot.ids))
        self._idle.append(slot)
        self.trim()

    def trim(self, *, room_bytes: int = 0) -> None:
        """Drop idle slots, the least recently used first, until `room_bytes` more fit the capacity."""
        while self._idle and self.held_bytes + room_bytes > self._capacity_bytes:
            self._idle.pop(0)

    def clear(self) -> None:
        self._idle.clear()
