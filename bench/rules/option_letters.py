"""How the kit behind MMBench's board reads an option letter from a reply, by rules alone.

    refusal -> Z | one option letter near the end -> it | Z -> Z | "answer is X" -> X | one text -> its letter

Its quirks are kept: letters are case-sensitive in the first rule and not in the "answer is" rule, which has
no word boundary either ("the answer is blue" reads as B).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

REFUSAL = "Z"

_FAILED_CALL = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])", re.IGNORECASE)
# A lone letter counts if its first mention is among this many last words.
_LAST_WORDS = 4


def infer_option(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter that a reply gives, `REFUSAL` for a refusal, None where the rules cannot tell.

    Args:
        reply: raw.
        options: letter -> text.
    """
    return _by_letter(reply, options) or _by_text(reply, options)


def _by_letter(reply: str, options: Mapping[str, str]) -> str | None:
    if _FAILED_CALL in reply:
        return None
    if any(refusal in reply for refusal in _REFUSALS):
        return REFUSAL
    words = reply.translate(_MARKS_TO_SPACES).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and REFUSAL in words:
        return REFUSAL
    match = _ANSWER_IS.search(reply)
    if match and match[1].upper() in options:
        return match[1].upper()
    return None


def _by_text(reply: str, options: Mapping[str, str]) -> str | None:
    lower = reply.lower()
    if len(lower) > 2 * sum(len(text) for text in options.values()):
        return None
    contained = [letter for letter, text in options.items() if text.lower() in lower]
    return contained[0] if len(contained) == 1 else None
