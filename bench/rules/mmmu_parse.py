"""How MMMU's official evaluator reads a reply, quirks included: they move scores, so they are kept.

reply to a choice -> letter, or None where the official code draws at random
reply to an open question -> strings and numbers -> right where one of them meets the gold answer
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# What is taken off the ends of a reply: each mark in turn, so that "B.," keeps its full stop.
_END_MARKS = ",.!?;:'"
# Words after which the answer is expected; `=` joins them in the last line.
_KEY_PHRASES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.5, .5
)


def parse_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter that a reply to a multiple-choice question gives, None where the official code would draw.

    `(X)` anywhere comes first; then a letter between spaces; then, in replies of more than five words, the
    text of an option. Of several, the one whose last mention is last.

    Args:
        reply: raw.
        options: letter -> text, in the order of the letters.
    """
    for mark in _END_MARKS:
        reply = reply.strip(mark)
    reply = f" {reply} "
    for shape in ("({})", " {} "):
        found = {letter: reply.rfind(shape.format(letter)) for letter in options}
        if max(found.values()) >= 0:
            return max(found, key=found.__getitem__)
    return _by_text(reply, options)


def parse_choice_pro(reply: str, options: Mapping[str, str], *, answer_mark: bool = True) -> str | None:
    """The letter that MMMU-Pro's evaluator reads, None where it would draw.

    The text after the last "Answer:" comes first, if it holds one option letter; then as in MMMU, but a
    letter needs no space before it, and `X.` counts too.

    Args:
        reply: raw.
        options: letter -> text, in the order of the letters.
        answer_mark: whether "Answer:" is looked for; lmms-eval's copy does not.
    """
    mark = reply.rfind("Answer:") if answer_mark else -1
    if mark >= 0:
        tail = reply[mark + len("Answer:") :]
        named = [letter for letter in options if letter in tail]
        if len(named) == 1:
            return named[0]
    for end in _END_MARKS:
        reply = reply.strip(end)
    reply = f" {reply} "
    for shape, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if shape.format(letter) in reply]
        if found:
            # Where none stands at such a place, the first of them is taken.
            return max(found, key=lambda letter: reply.rfind(place.format(letter)))
    return _by_text(reply, options)


def parse_open(reply: str) -> list[str | float]:
    """Every string and number that counts as an answer in a reply to an open question."""
    # The official split at ". " before a capital never happens: the text is lower case by then.
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    found = []
    for place, line in enumerate(lines):
        phrases = (*_KEY_PHRASES, "=") if place == len(lines) - 1 else _KEY_PHRASES
        tail = _shortest([line.split(phrase)[-1].strip() for phrase in phrases if phrase in line])
        if tail and tail not in _TRIVIAL:
            found.append(tail)
    strings = found or [reply]
    numbers = [number for text in strings for pattern in _NUMBERS for number in pattern.findall(text)]
    values: dict[str | float, None] = {}
    for text in [*strings, *numbers]:
        values.update(dict.fromkeys(_normalise(text)))
    return list(values)


def choice_is_right(letter: str | None, gold: str | Sequence[str]) -> bool:
    """Whether a letter is the gold letter, or one of several."""
    return letter is not None and (letter == gold if isinstance(gold, str) else letter in gold)


def open_is_right(values: Sequence[str | float], gold: str | Sequence[str]) -> bool:
    """Whether a number equals a gold number, or a string contains a gold string.

    Args:
        values: what `parse_open` gave.
        gold: the answer, or several that are all right.
    """
    golds = [value for text in ([gold] if isinstance(gold, str) else gold) for value in _normalise(text)]
    texts = [value for value in golds if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in golds for value in values
    )


def _by_text(reply: str, options: Mapping[str, str]) -> str | None:
    """In replies of more than five words, the option whose text is the last to be mentioned."""
    if len(reply.split()) <= 5:
        return None
    lower = reply.lower()
    found = {letter: lower.rfind(text.lower()) for letter, text in options.items()}
    return max(found, key=found.__getitem__) if max(found.values()) >= 0 else None


def _shortest(tails: Sequence[str]) -> str | None:
    """The first of the shortest tails; an empty one gives way to whatever follows it."""
    shortest: str | None = None
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def _normalise(text: str) -> list[str | float]:
    """A number to two decimals, or lower-case text; a single character only matches beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
