"""Where a benchmark's own code asks an LLM what a reply says: what it is asked, and what becomes of it.

    reply -> code reads it?  yes: a Mark
                             no:  request -> Reader -> extraction -> a Mark, or unscored where none came

Without a Reader, code alone reads replies, and the score says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from genrecal.core.files import sha256_bytes

# The texts in the official files (commits 53d52587 and 2d6a779b); they are not part of this repository.
PUBLISHED = {
    "a231722ced09cbd1f3fd16630ab58bf487f12e2f46ea0b26d1f2f6b5c50fb17c": "MathVista, published",
    "97e29ddf1fe6c448f38b2c1d03b3c0621b6afabd1de36e7a1a4e5d5a1f687885": "BLINK, published",
}
OWN_WORDS = "own words"
MATHVISTA, BLINK = "mathvista", "blink"

_MATHVISTA = """\
A model was asked a question and has replied. Write down the answer that its reply gives, in the form that \
the hint asks for and without any other word. Do not solve the question, and do not mend a wrong answer.

Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, \
at the end.
Question: How many apples lie on the table?

I count four red ones and three green ones, which makes 7 apples.

Extracted answer: 7

Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.
Question: Which angle is the largest?
Choices:
(A) 30
(B) 45
(C) 60

The angle of 60 degrees is the largest.

Extracted answer: C
"""
_BLINK = """\
A model was asked to choose one of several options and has replied. Say which option its reply chooses: \
write its letter in brackets, such as (A), and nothing else. Where the reply refuses, chooses none or \
chooses several, write (Z). Do not answer the question yourself.

Question: {}?
Options: {}
(Z) none of them
Reply: {}
Chosen: """


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPrompt:
    """What an LLM is asked of a benchmark's replies."""

    benchmark: str  # mathvista | blink
    name: str  # what a score says of it
    text: str  # mathvista: stands before query and reply; blink: has gaps for question, options and reply

    @property
    def sha256(self) -> str:
        return sha256_bytes(self.text.encode())


OWN_PROMPTS = {
    MATHVISTA: ExtractionPrompt(benchmark=MATHVISTA, name=OWN_WORDS, text=_MATHVISTA),
    BLINK: ExtractionPrompt(benchmark=BLINK, name=OWN_WORDS, text=_BLINK),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked about one reply."""

    text: str
    usable: Callable[[str], bool]  # whether what comes back says anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What an LLM read in a reply; `text` None: nothing came of it, and `reason` says why."""

    text: str | None
    reason: str
    unreachable: bool = False


class Reader(Protocol):
    """Reads answers out of replies."""

    def prompt(self, benchmark: str) -> ExtractionPrompt: ...

    def facts(self, benchmark: str) -> Mapping[str, Any]:
        """What a score must say of who read its replies."""
        ...

    def read(self, benchmark: str, requests: Sequence[Request]) -> list[Extraction]:
        """An extraction for each request, in their order."""
        ...
