"""A query as token ids: the build's chat template, image places expanded, special tokens out of users' reach.

A query is a sequence of parts, text and images in any order:

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
from collections.abc import Iterable, Sequence
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


class PromptEncoder:
    """The tokenizer and the chat template of a build.

    Args:
        tokenizer: path of `tokenizer.json`.
        template: the chat template, Jinja.
        image_token: the id that stands for image features, from `config.json`.

    Raises:
        BuildError: the tokenizer or the template cannot be read.
    """

    def __init__(self, *, tokenizer: Path, template: str, image_token: int) -> None:
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises plain Exception
            raise BuildError(f"cannot be read ({_one_line(error)})", where=tokenizer) from None
        self._template = _compile(template)
        self._image_token = image_token
        special = {
            token.content: (number, token)
            for number, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        if image_token not in (number for number, _ in special.values()):
            raise BuildError(f"its special tokens do not hold the image token {image_token}", where=tokenizer)
        self._ids = {content: number for content, (number, _) in special.items()}
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

    def encode(self, parts: Sequence[Part], image_tokens: Sequence[int]) -> list[int]:
        """Token ids of a query with the prompt of the answer at its end.

        Args:
            parts: text and images in the order of the query.
            image_tokens: how many tokens each image becomes.

        Raises:
            DataError: there are no parts, or one is neither text nor an image.
            BuildError: the template fails or does not place every image.
        """
        counts = iter(image_tokens)
        ids: list[int] = []
        placed = 0
        for text, special in self._pieces(parts):
            ids.extend(self.tokenizer.encode(text, add_special_tokens=False).ids)
            if special is None:
                continue
            number = self._ids[special]
            if number != self._image_token:
                ids.append(number)
                continue
            placed += 1
            ids.extend([number] * next(counts, 0))
        if placed != len(image_tokens):
            raise BuildError(f"the chat template places {placed} of {len(image_tokens)} images")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _pieces(self, parts: Sequence[Part]) -> Iterable[tuple[str, str | None]]:
        """Stretches of plain text, each with the special token after it; the last one has none."""
        texts = [part for part in parts if isinstance(part, str)]
        hide = self._hiding(texts)
        show = {ord(hidden): chr(start) for start, hidden in hide.items()}
        rendered = self._render([part.translate(hide) if isinstance(part, str) else part for part in parts])
        place = 0
        for match in self._special.finditer(rendered):
            yield rendered[place : match.start()].translate(show), match[match.lastindex or 0]
            place = match.end()
        yield rendered[place:].translate(show), None

    def _hiding(self, texts: Sequence[str]) -> dict[int, str]:
        """Each character that starts a special token -> a private-use character that no text holds."""
        taken = set().union(*texts)
        free = (character for character in map(chr, _private_use()) if character not in taken)
        return {ord(start): next(free) for start in self._starts}

    def _render(self, parts: Sequence[Part]) -> str:
        if not parts:
            raise DataError("the query is empty", fix="Give a text, an image or both")
        content: list[dict[str, str]] = []
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            elif isinstance(part, Image.Image):
                content.append({"type": "image"})
            else:
                raise DataError(f"a part of the query is a {type(part).__name__}, not text or an image")
        try:
            return self._template.render(
                messages=[{"role": "user", "content": content}], add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise BuildError(f"its chat template fails ({_one_line(error)})") from None


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
