"""The images of one row: where its text has them, what it says of them, and references to open them by.

    image, images   a path, a data URI, bytes, {"bytes", "path"}, or a list of these
    blocks          {"type": "image"}, alone or with the image: OpenAI's image_url, Anthropic's source, …

Every `<image>` in a text and every block without an image of its own takes the next one of the row.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from genrecal.core.errors import DataError
from genrecal.core.types import ImageSource
from genrecal.data.locate import ImageFolder
from genrecal.data.references import CachedImage, DatasetImage, InlineImage, TarMember

IMAGE_MARK = "<image>"

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = "file://"
_DATA_URI = re.compile(r"^data:image/[\w.+-]+;base64,", re.IGNORECASE)


def blocks(content: list[Any], where: str) -> tuple[str, tuple[Any, ...]]:
    """The text of a message's blocks with `<image>` for each image, and what the blocks say of the images.

    Raises:
        DataError: a block is neither text nor image.
    """
    text, images = "", []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(block, str) or (kind == "text" and isinstance(block.get("text"), str)):
            words = block if isinstance(block, str) else block["text"]
            text += words
            images += [None] * words.count(IMAGE_MARK)
        elif kind in ("image", "image_url"):
            # With a newline on both sides, which chat_messages takes off again.
            text += ("\n" if text and not text.endswith(f"{IMAGE_MARK}\n") else "") + f"{IMAGE_MARK}\n"
            images.append(_of_block(block))
        else:
            raise DataError(f"has a block that is neither text nor image: {short(block)}", where=where)
    return text, tuple(images)


def listed_images(row: dict[str, Any]) -> list[Any]:
    """What the row names beside its text."""
    for name in ("image", "images"):
        value = row.get(name)
        if isinstance(value, list | tuple):
            if value:
                return list(value)
        elif value is not None and value != "":
            return [value]
    return []


def references(
    row: dict[str, Any], places: Sequence[Any], folder: ImageFolder, where: str
) -> tuple[ImageSource, ...]:
    """Every image in the order in which the text has them.

    Args:
        row: names images, or none.
        places: where the text has one: the image of a block, or None where the row's next one stands.
        folder: where paths start.
        where: the row, for errors.

    Raises:
        DataError: the numbers differ, or an image is none that can be read.
    """
    if row.get("image") and row.get("images"):
        raise DataError(
            "has both 'image' and 'images'", where=where, fix="Give the source's format, or drop one"
        )
    listed = listed_images(row)
    open_places = sum(image is None for image in places)
    if open_places != len(listed):
        raise DataError(f"names {len(listed)} images but holds {open_places} '{IMAGE_MARK}'", where=where)
    rest = iter(listed)
    named = [next(rest) if image is None else image for image in places]
    return tuple(_reference(value, number, folder, where) for number, value in enumerate(named))


def is_text(text: str) -> bool:
    """JSON can spell half of a character; no tokenizer and no file takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: Any) -> str:
    """A value in an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _of_block(block: dict[str, Any]) -> Any:
    """What an image block names: OpenAI's image_url, Anthropic's source, or image, url, path, base64."""
    source = block.get("source")
    if isinstance(source, dict) and source.get("data"):
        return f"data:{source.get('media_type', 'image/png')};base64,{source['data']}"
    for name in ("image_url", "image", "url", "path"):
        value = block.get(name)
        if isinstance(value, dict) and "url" in value:
            value = value["url"]
        if value is not None:
            return value
    return f"data:image/png;base64,{block['base64']}" if block.get("base64") else None


def _reference(value: Any, number: int, folder: ImageFolder, where: str) -> ImageSource:
    if isinstance(value, InlineImage | TarMember | DatasetImage | CachedImage):
        return value
    name = f"{where} image {number}"
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") else value.get("path")
    if isinstance(value, bytes):
        return InlineImage(data=value, name=name)
    if not isinstance(value, str) or not value or "\0" in value or not is_text(value):
        raise DataError(f"image {number} is neither a path nor an image: {short(value)}", where=where)
    if _DATA_URI.match(value):
        try:
            return InlineImage(data=base64.b64decode(value.partition(",")[2], validate=True), name=name)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"image {number} is not valid base64 ({error})", where=where) from None
    if value.startswith("data:"):
        raise DataError(f"image {number} is a data URI of no image in base64: {short(value)}", where=where)
    if value[: len(_FILE)].lower() == _FILE:
        value = value[len(_FILE) :]  # a path after all; the folder judges where it leads
    if _ADDRESS.match(value):
        raise DataError(
            f"image {number} lies at an address: {short(value)}", where=where, fix="Download it first"
        )
    try:
        return folder.find(value, where)
    except OSError as error:
        raise DataError(
            f"image {number} is no path ({error.strerror}): {short(value)}", where=where
        ) from None
