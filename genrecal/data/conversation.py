"""One row as users have it -> Samples. The same for all file formats, which differ in how rows lie on disk.

    conversations   [{"from": "human"|"gpt"|"system", "value": text}, …]                     LLaVA, ShareGPT
    messages        [{"role": "user"|"assistant"|"system", "content": text or blocks}, …]    ms-swift, OpenAI
    texts           [{"user": text, "assistant": text}, …]                                   The Cauldron
    prompt and completion, question and answer                                               TRL, VQA sets

Images stand where the text has `<image>` or where a block of a message is one (row_images.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from genrecal.core.errors import DataError
from genrecal.core.types import DOMAINS, Sample, Turn
from genrecal.data.locate import ImageFolder
from genrecal.data.row_images import IMAGE_MARK, blocks, is_text, listed_images, references, short
from genrecal.data.rows import Row

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
KNOWN_COLUMNS = ("id", "domain", "system", "image", "images", "videos", "audios", "objects", *CONVERSATIONS)
# Where ms-swift puts what a row has in `objects`.
OBJECT_MARKS = ("<bbox>", "<ref-object>")
Turns = Literal["last", "each"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What a source says about all of its rows."""

    source: str
    start: Path  # the folder that rows without an id are named from
    folder: ImageFolder  # that images are looked for in
    domain: str | None = None
    turns: Turns = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A turn with the images that its own blocks brought; None where the next one of the row stands."""

    role: str
    text: str
    images: tuple[Any, ...] = ()
    learned: bool = True


def samples_of(row: Row, rules: RowRules) -> tuple[Sample, ...]:
    """The samples of one row: its last answer, or each answer with the turns before as its context.

    Args:
        row: with its content as plain values; image cells may be references already.
        rules: the source's.

    Raises:
        DataError: the row cannot be used.
    """
    content, where = row.content, row.where
    if not isinstance(content, dict):
        raise DataError("is no object with a conversation", where=where)
    for kind in ("videos", "audios"):
        if content.get(kind):
            raise DataError(f"has {kind}; only images are read", where=where)
    said = conversation_of(content, where)
    _require_no_objects(content, said, where)
    answers = [place for place, turn in enumerate(said) if turn.role == "assistant" and turn.learned]
    if len(said) < 2 or said[-1].role != "assistant" or not answers:
        raise DataError("does not end with an answer", where=where)
    places = [image for turn in said for image in turn.images]
    images = references(content, places, rules.folder, where)
    if rules.turns == "last":
        answers = answers[-1:]
    domain = content.get("domain") or rules.domain
    if domain not in DOMAINS:
        fix = f"Give the row or its source one of {', '.join(DOMAINS)}"
        raise DataError(f"has the domain '{domain}'", where=where, fix=fix)
    turns = tuple(Turn(role=turn.role, text=turn.text) for turn in said)
    name = str(content["id"]) if content.get("id") not in (None, "") else _own_name(row, rules.start, turns)
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


def _own_name(row: Row, start: Path, turns: tuple[Turn, ...]) -> str:
    """The id of a row that has none: its place below the source, and a digest of its words.

    No path as somebody typed it: another run, or another machine, must find the ids of an exclusion file. The
    digest tells rows of two sources with like names apart, and a file that has changed since.
    """
    file = os.path.relpath(row.file, start)
    words = "\0".join(turn.text for turn in turns).encode(errors="surrogatepass")
    return f"{file} {row.place} ({hashlib.sha256(words).hexdigest()[:8]})"


def _require_no_objects(row: dict[str, Any], said: list[Said], where: str) -> None:
    """Each family writes boxes in a way of its own, so nobody can fill them in for two models at once."""
    if not row.get("objects"):
        return
    for mark in OBJECT_MARKS:
        if any(mark in turn.text for turn in said):
            raise DataError(
                f"has '{mark}' in its text, which its 'objects' would stand for: they are not filled in",
                where=where,
                fix="Write the boxes into the text, as both models are to read them",
            )


def _require_answer(turns: tuple[Turn, ...], place: int, where: str) -> None:
    answer = turns[place].text
    if not any(turn.role == "user" for turn in turns[:place]):
        raise DataError("has an answer without a question", where=where)
    if not answer.strip():
        raise DataError("has an empty answer", where=where)
    if IMAGE_MARK in answer:
        raise DataError(f"has an '{IMAGE_MARK}' in its answer", where=where)


def conversation_of(row: dict[str, Any], where: str) -> list[Said]:
    """The turns, of whichever column holds them.

    Raises:
        DataError: no column does, or they are no turns.
    """
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
        said.insert(0, Said(role="system", text=system))
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


def _marked(said: list[Said], images: int) -> list[Said]:
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


def _turn(turn: Any, where: str) -> Said:
    if isinstance(turn, dict):
        speaker = turn["from"] if turn.get("from") is not None else turn.get("role")
        content = turn["value"] if turn.get("value") is not None else turn.get("content")
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        learned = turn.get("loss") is not False
        if role and isinstance(content, str):
            marks = (None,) * content.count(IMAGE_MARK)
            return Said(role=role, text=content, images=marks, learned=learned)
        if role and isinstance(content, list):
            text, images = blocks(content, where)
            return Said(role=role, text=text, images=images, learned=learned)
    raise DataError(
        f"has a turn that is neither {{'from': human|gpt, 'value'}} nor {{'role', 'content'}}: {short(turn)}",
        where=where,
    )
