"""A conversation as token ids: the build's chat template, image places expanded, special tokens out of
users' reach.

A query is a sequence of parts, text and images in any order; a conversation is a sequence of messages:

    ("Compare", image, "with", image) -> one user message -> chat template -> text -> token ids

What a user types is never a special token. The template's output is cut at the special tokens that the
template itself wrote; the stretches between them are tokenized as plain text. To tell the two apart, each
character that starts some special token (`<` in Qwen2-VL) passes through the template as a private-use
character that no part of the query holds, and is put back before tokenizing. A typed `<|image_pad|>` or
`<|im_end|>` so becomes ordinary letters; every other text has the very ids that transformers' processor
gives it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from tokenizers import Tokenizer

from genrecal.core.errors import BuildError, DataError

Part = str | Image.Image
# What stands for one image: texts with special tokens, and numbers of image tokens (preprocess/picture.py).
Expansion = Sequence[str | int]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    parts: tuple[Part, ...]


def user(*parts: Part) -> Message:
    """A message of the user's."""
    return Message(role="user", parts=parts)


class PromptEncoder:
    """The tokenizer and the chat template of a build.

    Args:
        tokenizer: path of `tokenizer.json`.
        template: the chat template, Jinja.
        image_token: the id that stands for image features, from `config.json`.
        names: what templates call special tokens (`bos_token`, …), from `special_tokens_map.json`.

    Raises:
        BuildError: the tokenizer or the template cannot be read.
    """

    def __init__(
        self, *, tokenizer: Path, template: str, image_token: int, names: Mapping[str, Any] | None = None
    ) -> None:
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises plain Exception
            raise BuildError(f"cannot be read ({_one_line(error)})", where=tokenizer) from None
        self._template = _compile(template)
        self._names = _special_names(names or {})
        self._image_token = image_token
        special = {
            token.content: (number, token)
            for number, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._ids = {content: number for content, (number, _) in special.items()}
        contents = {number: content for content, number in self._ids.items()}
        if image_token not in contents:
            raise BuildError(f"its special tokens do not hold the image token {image_token}", where=tokenizer)
        self._image = contents[image_token]
        # The longest first, as the tokenizer itself takes them; some swallow the blanks beside them.
        blanks = {True: r"\s*", False: ""}
        self._special = re.compile(
            "|".join(
                f"{blanks[token.lstrip]}({re.escape(content)}){blanks[token.rstrip]}"
                for content, (_, token) in sorted(special.items(), key=lambda item: -len(item[0]))
            )
        )
        self._starts = sorted({content[0] for content in special})
        # A tokenizer that was saved in use may pad or cut what it encodes.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # From here on the tokenizer reads special tokens as plain text; we place the real ones.
        self.tokenizer.encode_special_tokens = True
        self._before, self._after = self._added_ids()

    def encode(self, messages: Sequence[Message], expansions: Sequence[Expansion] = ()) -> list[int]:
        """Token ids of a conversation with the prompt of the answer at its end.

        Args:
            messages: the turns; a conversation without any text or image is refused.
            expansions: what stands for each image, in the order of the images.

        Raises:
            DataError: there is nothing in it, a role is unknown, or a part is neither text nor an image.
            BuildError: the template fails or does not place every image.
        """
        hide = self._hiding(messages)
        show = {ord(hidden): chr(start) for start, hidden in hide.items()}
        rendered = self._render(messages, hide)
        ids: list[int] = []
        text, counts = self._expanded(rendered, expansions)
        for plain, special in self._pieces(text):
            if plain:
                ids.extend(self.tokenizer.encode(plain.translate(show), add_special_tokens=False).ids)
            if special == self._image:
                ids.extend([self._image_token] * next(counts))
            elif special is not None:
                ids.append(self._ids[special])
        # As transformers: a tokenizer that begins a text with a token of its own, unless the template did.
        first = self._names.get("bos_token")
        if first and rendered.startswith(first):
            return ids
        return [*self._before, *ids, *self._after]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _expanded(self, rendered: str, expansions: Sequence[Expansion]) -> tuple[str, Iterator[int]]:
        """The text with each image's expansion in it, one image token a run, and how long the runs are."""
        pieces, counts, place = [], [], 0
        following = iter(expansions)
        placed = 0
        for match in self._special.finditer(rendered):
            if match[match.lastindex or 0] != self._image:
                continue
            placed += 1
            start, end = match.span(match.lastindex or 0)
            pieces.append(rendered[place:start])
            for part in next(following, ()):
                pieces.append(part if isinstance(part, str) else self._image)
                if not isinstance(part, str):
                    counts.append(part)
            place = end
        if placed != len(expansions):
            raise BuildError(f"the chat template places {placed} of {len(expansions)} images")
        return "".join([*pieces, rendered[place:]]), iter(counts)

    def _pieces(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Stretches of plain text, each with the special token after it; the last one has none."""
        place = 0
        for match in self._special.finditer(text):
            yield text[place : match.start()], match[match.lastindex or 0]
            place = match.end()
        yield text[place:], None

    def _added_ids(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer itself puts before and behind a text."""
        encoding = self.tokenizer.encode("a")
        inner = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
        if not inner:
            return [], []
        return encoding.ids[: inner[0]], encoding.ids[inner[-1] + 1 :]

    def _hiding(self, messages: Sequence[Message]) -> dict[int, str]:
        """Each character that starts a special token -> a private-use character that no text holds."""
        taken = set().union(
            *(part for message in messages for part in message.parts if isinstance(part, str))
        )
        free = (character for character in map(chr, _private_use()) if character not in taken)
        return {ord(start): next(free) for start in self._starts}

    def _render(self, messages: Sequence[Message], hide: dict[int, str]) -> str:
        try:
            return self._template.render(
                messages=[
                    {"role": _role(message), "content": _content(message, hide)} for message in messages
                ],
                add_generation_prompt=True,
                **self._names,
            )
        except jinja2.TemplateError as error:
            raise BuildError(f"its chat template fails ({_one_line(error)})") from None
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            # What an expression of the template makes of values that it did not expect.
            raise BuildError(f"its chat template fails ({_one_line(error)})") from None


def _role(message: Message) -> str:
    if message.role not in ROLES:
        raise DataError(f"no role is called '{message.role}'", fix=f"Known roles: {', '.join(ROLES)}")
    return message.role


def _content(message: Message, hide: dict[int, str]) -> list[dict[str, str]]:
    if not message.parts:
        raise DataError("the query is empty", fix="Give a text, an image or both")
    content: list[dict[str, str]] = []
    for part in message.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part.translate(hide)})
        elif isinstance(part, Image.Image):
            content.append({"type": "image"})
        else:
            raise DataError(f"a part of the query is a {type(part).__name__}, not text or an image")
    return content


def _special_names(content: Mapping[str, Any]) -> dict[str, str]:
    """`special_tokens_map.json` as templates know it: a token is written as text or with its properties."""
    texts = {
        name: entry.get("content") if isinstance(entry, Mapping) else entry for name, entry in content.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _private_use() -> Iterable[int]:
    return chain(range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def _compile(template: str) -> jinja2.Template:
    """The template in a sandbox, with what chat templates expect to find there."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise BuildError(f"its chat template is not valid ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
