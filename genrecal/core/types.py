"""The values that flow: Sample -> PairedSample -> ... ; the torch-free ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# The paper's three domains (section 4.1b) and the rest of its mixture, which stage 3 leaves out.
DOMAINS = ("general_vqa", "knowledge", "science_math", "chart_document")


class StoredImage(Protocol):
    """An image that is no file of its own: in a tar, a table or a row. Small to hold, and to pickle."""

    def read(self) -> bytes:
        """The encoded image."""
        ...

    def __str__(self) -> str:
        """What finds it again, for errors."""
        ...


ImageSource = Path | StoredImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation; `text` holds `<image>` where an image stands."""

    role: str  # "user", "assistant", or "system" before the others
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sample: a conversation that ends with the answer to learn."""

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    domain: str
    source: str

    @property
    def answer(self) -> str:
        return self.turns[-1].text
