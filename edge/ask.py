"""`genrecal ask`: questions about images from the command line, one answer or a conversation.

BUILD IMAGE... QUESTION     one answer, streamed
BUILD IMAGE...              a conversation: one line of standard input is one question
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from edge.conversation import Conversation
from edge.generate import Answer, AnswerStream
from edge.model import EdgeModel
from edge.prompt import Part
from genrecal.core.errors import ConfigError, DataError
from genrecal.core.images import open_image

PROMPT = "> "


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What stands on the command line behind the build."""

    images: tuple[Path, ...]
    question: str | None
    """None: questions come from standard input."""


def read_arguments(words: Sequence[str]) -> Asked:
    """Images and the question; the last word is the question unless it names an image.

    Raises:
        ConfigError: the question is empty or no text.
    """
    *before, last = words
    if os.path.isfile(last) or _looks_like_an_image(last):
        return Asked(images=tuple(Path(word) for word in words), question=None)
    if not last.strip():
        raise ConfigError("is empty", where="the question")
    if last.encode(errors="replace").decode() != last:
        raise ConfigError("is not valid UTF-8", where="the question")
    return Asked(images=tuple(Path(word) for word in before), question=last)


def ask(
    open_model: Callable[[], EdgeModel],
    images: Sequence[Path],
    questions: Iterable[str],
    *,
    as_json: bool,
    overrides: dict[str, Any],
) -> None:
    """Answer questions of one conversation that begins with `images`, each streamed to standard output.

    A question that is too long is told and passed over where more can follow, so that a long conversation
    does not end by it.

    Raises:
        DataError: an image cannot be used, or the first question is too long.
        BuildError: the build cannot be used.
        DeviceError: this machine is no such device.
    """
    pictures: list[Part] = [open_image(path) for path in images]
    chat = Conversation(open_model())
    for question in questions:
        stream = chat.stream(*pictures, question, **overrides)
        try:
            _print(stream, question, as_json)
        except DataError as error:
            if not chat.messages:
                raise
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            stream.close()
            print()
        else:
            pictures = []  # they are in the conversation now


def typed_questions() -> Iterator[str]:
    """Lines of standard input that are not blank; with a prompt where somebody types them.

    Raises:
        ConfigError: there is none.
    """
    count = 0
    while True:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            break
        if line.strip():
            count += 1
            yield line
    if not count and not sys.stdin.isatty():
        raise ConfigError("there is none", where="the question", fix="Give it behind the images")


def as_dict(question: str, answer: Answer) -> dict[str, Any]:
    """An answer with its counts, and its times in seconds."""
    return {
        "question": question,
        "answer": answer.text,
        "stop": answer.stop,
        "prompt_tokens": answer.prompt_tokens,
        "reused_tokens": answer.reused_tokens,
        "answer_tokens": len(answer.token_ids),
        "prepare_s": answer.prepare_s,
        "vision_s": answer.vision_s,
        "prefill_s": answer.prefill_s,
        "first_token_s": answer.first_token_s,
        "decode_s": answer.decode_s,
        "tokens_per_s": answer.tokens_per_s,
    }


def _print(stream: AnswerStream, question: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_dict(question, stream.answer), ensure_ascii=False), flush=True)
        return
    for piece in stream:
        print(piece, end="", flush=True)
    print()


def _looks_like_an_image(word: str) -> bool:
    """A misspelt path must not become a question: it has an image's ending and no blank."""
    known = Image.registered_extensions()
    return Path(word).suffix.lower() in known and not any(letter.isspace() for letter in word)
