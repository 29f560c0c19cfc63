"""How lmms-eval reads an option letter from a reply: one rule for MMBench, one for most other sets, and a few
that look at the beginning alone. Quirks are kept.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

_FAILED_CALL = "Failed to obtain answer via API"
# MMBench's rule looks for five letters, whatever options there are.
_MMBENCH_LETTERS = "ABCDE"
_MMBENCH_SHAPES = (
    "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).",
)  # fmt: skip
_A_MAY_BE_AN_ARTICLE = 3  # words; in longer replies "A" alone is not believed

_PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is",
    "best answer is", "the correct option is", "correct option is", "the best option is", "best option is",
    "the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select",
    "i pick", "my answer is", "my choice is", "옵션", "정답은", "답은", "답:",
    "答案是", "答案为", "选", "答えは",
)  # fmt: skip
_END_MARKS = ",.!?;:'\""
# Of several finds the one of the highest rank, and of these the last in the reply.
_START, _END, _PHRASE, _FALLBACK = 10, 9, 7, 0
_SHAPES = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_FIRST_LETTER = re.compile(r"[\(\s]*([A-Z])[\)\.\s]*", re.IGNORECASE)
_LETTER_AND_STOP = re.compile(r"^\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def mmbench_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """MMBench's rule: a letter by shape, else the one option whose text stands in the reply."""
    return _mmbench_by_letter(reply) or _by_text(reply, options)


def extract_letter(reply: str, letters: Sequence[str]) -> str | None:
    """The rule of MMStar and RealWorldQA: every shape is looked for, the most telling one wins."""
    text = reply.strip()
    if not text:
        return None
    for mark in _END_MARKS:
        text = text.strip(mark)
    text = f" {text} "
    bare = text.strip()
    found: list[tuple[int, int, str]] = []  # rank, place, letter
    for shape, rank in _SHAPES:
        for letter in letters:
            place = text.rfind(shape.format(letter))
            if place >= 0:
                found.append((rank, place, letter))
    lower = text.lower()
    for phrase in _PHRASES:
        start = lower.find(phrase)
        if start >= 0:
            for letter in letters:
                place = text.find(letter, start + len(phrase))
                if place >= 0:
                    found.append((_PHRASE, place, letter))
    for letter in letters:
        if bare.startswith(letter) and (len(bare) == 1 or not bare[1].isalpha()):
            found.append((_START, 0, letter))
    for letter in letters:
        if bare.endswith(letter) and (len(bare) == 1 or not bare[-2].isalpha()):
            found.append((_END, len(text) - 1, letter))
    if not found:
        found = [(_FALLBACK, text.rfind(letter), letter) for letter in letters if letter in text]
    if not found:
        return None
    # The first of equals, as a stable sort leaves it.
    return max(found, key=lambda one: one[:2])[2]


def first_letter(reply: str) -> str:
    """BLINK's rule: the letter that the reply begins with, of whatever word; '' without one."""
    match = _FIRST_LETTER.match(reply.strip())
    return match[1].upper() if match else ""


def first_character(reply: str) -> str:
    """SEED-Bench-2-Plus's rule."""
    return reply.strip()[:1]


def equals_letter(reply: str, gold: str) -> bool:
    """AI2D's rule: "B." at the beginning, else the whole reply, without case and punctuation."""
    match = _LETTER_AND_STOP.match(reply)
    read = match[1] if match else reply
    return read.lower().translate(_NO_PUNCTUATION) == gold.lower().translate(_NO_PUNCTUATION)


def _mmbench_by_letter(reply: str) -> str | None:
    if _FAILED_CALL in reply:
        return None
    words = reply.split()
    alone = [letter for letter in _MMBENCH_LETTERS if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > _A_MAY_BE_AN_ARTICLE):
        return alone[0]
    for shape in _MMBENCH_SHAPES:
        found = [letter for letter in _MMBENCH_LETTERS if shape.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return None


def _by_text(reply: str, options: Mapping[str, str]) -> str | None:
    lower = reply.lower()
    contained = [letter for letter in "ABCD" if letter in options and options[letter].lower() in lower]
    return contained[0] if len(contained) == 1 else None
