"""Tokens to text as they come: never half a character, never the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are no whole character (yet).
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Collects tokens and gives out the text that is final.

    A byte-level token can end within a character; its text waits for the tokens that complete it. Text
    that could be the beginning of a stop string waits too.

    Args:
        decode: token ids to text, special tokens left out; the texts of two stretches that are cut between
            characters must join to the text of both.
        stop_strings: the text ends before the first of these.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop_strings)
        self._pending: list[int] = []
        self._held = ""
        self.text = ""
        """All that was given out so far."""
        self.stopped = False
        """Whether a stop string was met; nothing is given out after it."""

    def push(self, token: int) -> str:
        """Add a token; returns the text that became final by it, possibly none."""
        self._pending.append(token)
        decoded = self._decode(self._pending)
        if decoded.endswith(_BROKEN):
            return ""
        self._pending.clear()
        return self._give(decoded, last=False)

    def finish(self) -> str:
        """The text that was still waiting; bytes that never became a character are replacement characters."""
        decoded = self._decode(self._pending) if self._pending else ""
        self._pending.clear()
        return self._give(decoded, last=True)

    def _give(self, decoded: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += decoded
        end = min((place for stop in self._stops if (place := self._held.find(stop)) >= 0), default=None)
        if end is not None:
            self.stopped = True
        elif last:
            end = len(self._held)
        else:
            end = len(self._held) - self._beginning_of_a_stop()
        piece, self._held = self._held[:end], self._held[end:]
        self.text += piece
        return piece

    def _beginning_of_a_stop(self) -> int:
        """How many of the last held characters could be the beginning of a stop string."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
