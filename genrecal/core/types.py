"""The values that flow: Sample -> PairedSample -> ... ; the torch-free ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The paper's three domains (section 4.1b) and the rest of its mixture, which stage 3 leaves out.
DOMAINS = ("general_vqa", "knowledge", "science_math", "chart_document")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation; `text` holds `<image>` where an image stands."""

    role: str  # "user" or "assistant"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sample: a conversation that ends with the answer to learn."""

    id: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
    domain: str
    source: str

    @property
    def answer(self) -> str:
        return self.turns[-1].text
