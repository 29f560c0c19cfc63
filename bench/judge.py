"""What a judge is, and the judge without a model.

    JudgeItem (question, reference, reply) -> Grade (0..1, or None where no grade could be had)

A judge that fails gives no grade; it never gives a zero.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.null_model import null_scores

AND, OR = "<AND>", "<OR>"
# With more replies unscored than this share, the rest says too little about the whole.
MOST_UNGRADED = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeItem:
    """What a judge sees."""

    question: str
    reference: str  # with <AND> and <OR>
    reply: str
    bordered: bool = False  # its table is MM-Vet v2's, with outer borders; images in its question are <image>


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A correctness from 0 to 1 in `score`; None: no grade could be had, and `reason` says why."""

    score: float | None
    reason: str  # else the judge's words
    unreachable: bool = False  # there was no connection to the judge


class Judge(Protocol):
    """Grades replies to open questions."""

    @property
    def title(self) -> str:
        """The name of the column that its grades fill."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a score must say of its judge."""
        ...

    def grade(self, items: Sequence[JudgeItem], *, run: int) -> list[Grade]:
        """A grade for each item, in their order; `run` tells repeated gradings apart."""
        ...

    def beside(self, items: Sequence[JudgeItem]) -> Mapping[str, Any]:
        """What a score reports beside its figure: what this judge gives to answers that say nothing."""
        ...


_ARTICLES = frozenset(("a", "an", "the"))
# Words that a right and a wrong sentence share: they would lift every wrong answer's overlap.
_FUNCTION_WORDS = _ARTICLES | frozenset(
    re.findall(
        r"\w+",
        "am and are as at be been but by do does has have in is it its of on or so than that then there "
        "these they this those to was were which with",
    )
)
_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(string.punctuation.replace(".", "").replace("-", ""), " "))
_LONE_MARKS = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<=\w)-|-(?!\w)")


class OfflineJudge:
    """Rules instead of a model: the same replies always get the same grades, and no network is needed.

    A reference element that stands whole in the reply is right; otherwise the overlap of content words (F1)
    gives a part of a point. The alternatives of `<OR>` count by the best, the elements of `<AND>` by their
    mean; `<OR>` binds loosest. It reads words, not sense ("it is not 3" contains "3"), so its grades compare
    with its own only.
    """

    title = "MM-Vet questions, offline judge"
    facts: Mapping[str, Any] = {"judge": "offline rules", "version": 1}

    def grade(self, items: Sequence[JudgeItem], *, run: int) -> list[Grade]:
        return [Grade(score=match(item.reply, item.reference), reason="offline rules") for item in items]

    def beside(self, items: Sequence[JudgeItem]) -> Mapping[str, Any]:
        return {"null_model": {"prompt": null_scores(items, lambda asked: self.grade(asked, run=0))}}


def match(reply: str, reference: str) -> float:
    """How far a reply meets a reference, 0 to 1."""
    return max(_all_of(reply, alternative.split(AND)) for alternative in reference.split(OR))


def _all_of(reply: str, elements: Sequence[str]) -> float:
    return sum(_one(reply, element) for element in elements) / len(elements)


def _one(reply: str, element: str) -> float:
    said, wanted = _words(reply), _words(element)
    if not wanted:
        return 0.0
    if f" {' '.join(wanted)} " in f" {' '.join(said)} ":
        return 1.0
    return _overlap(said, wanted)


def _words(text: str) -> list[str]:
    """Lower-case words without articles; numbers keep their point and sign."""
    text = _LONE_MARKS.sub(" ", text.lower().translate(_MARKS_TO_SPACES))
    return [word for word in text.split() if word not in _ARTICLES]


def _overlap(said: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the content words, below 1 by construction: whole matches have been found before."""
    one = Counter(word for word in said if word not in _FUNCTION_WORDS)
    other = Counter(word for word in wanted if word not in _FUNCTION_WORDS)
    shared = sum((one & other).values())
    if not shared:
        return 0.0
    # The same content words in another order are nearly right, not right.
    return min(2 * shared / (sum(one.values()) + sum(other.values())), 0.9)
