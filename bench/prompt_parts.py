"""From a row's images and its prompt text to a query's parts: images first, or where the text names them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from PIL import Image

from bench.task import Row
from bench.types import Part, Query
from genrecal.core.errors import DataError
from genrecal.core.images import open_image

IMAGE_MENTION = re.compile(r"<image (\d+)>")


def images_first(row: Row, text: str) -> Query:
    """All images by their numbers, then the text."""
    return Query(id=row.id, parts=(*opened(row).values(), text))


def images_in_place(row: Row, text: str) -> Query:
    """Every `<image N>` becomes that image; images that the text does not name come first."""
    images = opened(row)
    pieces = IMAGE_MENTION.split(text)  # text, number, text, number, ..., text
    named = {int(number) for number in pieces[1::2]}
    parts: list[Part] = [image for number, image in images.items() if number not in named]
    for place, piece in enumerate(pieces):
        if place % 2:
            parts.append(images[int(piece)])
        elif piece.strip("\n"):
            # Chat templates bring their own line breaks round an image.
            parts.append(piece.strip("\n"))
    return Query(id=row.id, parts=tuple(parts))


def require_named_images(row: Row, where: str) -> None:
    """Refuse a row whose texts name an image that it does not have.

    Raises:
        DataError: names the image.
    """
    text = " ".join((row.question, *row.options.values()))
    for number in {int(number) for number in IMAGE_MENTION.findall(text)} - row.images.keys():
        raise DataError(f"names <image {number}>, but image_{number} is empty", where=where)


def option_lines(options: Mapping[str, str], shape: str = "{letter}. {text}") -> str:
    """One line an option."""
    return "\n".join(shape.format(letter=letter, text=text) for letter, text in options.items())


def opened(row: Row) -> dict[int, Image.Image]:
    """A row's images, decoded."""
    return {
        number: open_image(source, name=f"image {number} of '{row.id}'")
        for number, source in row.images.items()
    }
