"""One row as users have it -> Samples. The same for all file formats, which differ in how rows lie on disk.

    conversations   [{"from": "human"|"gpt"|"system", "value": text}, …]                     LLaVA, ShareGPT
    messages        [{"role": "user"|"assistant"|"system", "content": text or blocks}, …]    ms-swift, OpenAI
    texts           [{"user": text, "assistant": text}, …]                                   The Cauldron
    prompt and completion, question and answer                                               TRL, VQA sets

Images stand where the text has `<image>` or where a block of a message is one (row_images.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from genrecal.core.errors import DataError
from genrecal.core.types import DOMAINS, Sample, Turn
from genrecal.data.locate import ImageFolder
from genrecal.data.row_images import IMAGE_MARK, blocks, is_text, listed_images, references, short

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
LISTS = ("messages", "conversations", "texts")
PAIRS = (("prompt", "completion"), ("question", "answer"))
CONVERSATIONS = (*LISTS, *(name for pair in PAIRS for name in pair))
# What else a row may say; readers of tables load these columns and no others.
KNOWN_COLUMNS = ("id", "domain", "system", "image", "images", "videos", "audios", *CONVERSATIONS)
Turns = Literal["last", "each"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What a source says about all of its rows."""

    source: str
    folder: ImageFolder
    domain: str | None = None
    turns: Turns = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """A turn with the images that its own blocks brought; None where the next one of the row stands."""

    role: str
    text: str
    images: tuple[Any, ...] = ()
    learned: bool = True


def samples_of(row: Any, rules: RowRules, *, where: str) -> tuple[Sample, ...]:
    """The samples of one row: its last answer, or each answer with the turns before as its context.

    Args:
        row: the row as plain values; image cells may be references already.
        rules: the source's.
        where: names the row in errors, and the sample where the row has no id.

    Raises:
        DataError: the row cannot be used.
    """
    if not isinstance(row, dict):
        raise DataError("is no object with a conversation", where=where)
    for kind in ("videos", "audios"):
        if row.get(kind):
            raise DataError(f"has {kind}; only images are read", where=where)
    said = _conversation(row, where)
    answers = [place for place, turn in enumerate(said) if turn.role == "assistant" and turn.learned]
    if len(said) < 2 or said[-1].role != "assistant" or not answers:
        raise DataError("does not end with an answer", where=where)
    places = [image for turn in said for image in turn.images]
    images = references(row, places, rules.folder, where)
    if rules.turns == "last":
        answers = answers[-1:]
    domain = row.get("domain") or rules.domain
    if domain not in DOMAINS:
        fix = f"Give the row or its source one of {', '.join(DOMAINS)}"
        raise DataError(f"has the domain '{domain}'", where=where, fix=fix)
    name = str(row["id"]) if row.get("id") not in (None, "") else where
    turns = tuple(Turn(role=turn.role, text=turn.text) for turn in said)
    if not all(is_text(text) for text in (name, *(turn.text for turn in turns))):
        raise DataError("has text with half a surrogate pair", where=where)
    samples = []
    for number, place in enumerate(answers, start=1):
        _require_answer(turns, place, where)
        shown = sum(turn.text.count(IMAGE_MARK) for turn in turns[:place])
        samples.append(
            Sample(
                id=f"{name}#{number}" if rules.turns == "each" else name,
                images=images[:shown],
                turns=turns[: place + 1],
                domain=domain,
                source=rules.source,
            )
        )
    return tuple(samples)


def _require_answer(turns: tuple[Turn, ...], place: int, where: str) -> None:
    answer = turns[place].text
    if not any(turn.role == "user" for turn in turns[:place]):
        raise DataError("has an answer without a question", where=where)
    if not answer.strip():
        raise DataError("has an empty answer", where=where)
    if IMAGE_MARK in answer:
        raise DataError(f"has an '{IMAGE_MARK}' in its answer", where=where)


def _conversation(row: dict[str, Any], where: str) -> list[_Said]:
    """The turns, of whichever column holds them."""
    lists = [name for name in LISTS if row.get(name) is not None]
    pairs = [pair for pair in PAIRS if all(row.get(name) is not None for name in pair)]
    if len(lists) > 1:
        raise DataError(
            f"has both '{lists[0]}' and '{lists[1]}'",
            where=where,
            fix="Give the source's format, or drop one",
        )
    if lists and not isinstance(row[lists[0]], list):
        raise DataError(f"'{lists[0]}' is no list of turns", where=where)
    if lists == ["texts"]:
        turns = [turn for exchange in row["texts"] for turn in _exchange(exchange, where)]
    elif lists:
        turns = row[lists[0]]
    elif pairs:
        question, answer = (row[name] for name in pairs[0])
        turns = [*_side(question, "user"), *_side(answer, "assistant")]
    else:
        known = "'messages', 'conversations' or 'texts', nor 'prompt' with 'completion'"
        raise DataError(f"has no {known}, nor 'question' with 'answer'", where=where)
    said = [_turn(turn, where) for turn in turns]
    if not lists or lists == ["texts"]:
        said = _marked(said, len(listed_images(row)))
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        said.insert(0, _Said(role="system", text=system))
    if any(turn.role == "system" for turn in said[1:]):
        raise DataError("has a system turn behind the first turn", where=where)
    return said


def _exchange(exchange: Any, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(exchange, dict):
        raise DataError(f"'texts' holds no exchange of user and assistant: {short(exchange)}", where=where)
    yield from ({"role": role, "content": exchange.get(role)} for role in ("user", "assistant"))


def _side(value: Any, role: str) -> list[Any]:
    """A prompt or a completion: turns of its own, or one text."""
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _marked(said: list[_Said], images: int) -> list[_Said]:
    """Sets of questions and answers mark no image: all of the row's stand before the first question."""
    if any(turn.images for turn in said):
        return said
    for place, turn in enumerate(said):
        if turn.role == "user":
            marks = f"{IMAGE_MARK}\n" * images
            return [
                *said[:place],
                replace(turn, text=marks + turn.text, images=(None,) * images),
                *said[place + 1 :],
            ]
    return said


def _turn(turn: Any, where: str) -> _Said:
    if isinstance(turn, dict):
        speaker = turn["from"] if turn.get("from") is not None else turn.get("role")
        content = turn["value"] if turn.get("value") is not None else turn.get("content")
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        learned = turn.get("loss") is not False
        if role and isinstance(content, str):
            marks = (None,) * content.count(IMAGE_MARK)
            return _Said(role=role, text=content, images=marks, learned=learned)
        if role and isinstance(content, list):
            text, images = blocks(content, where)
            return _Said(role=role, text=text, images=images, learned=learned)
    raise DataError(
        f"has a turn that is neither {{'from': human|gpt, 'value'}} nor {{'role', 'content'}}: {short(turn)}",
        where=where,
    )
