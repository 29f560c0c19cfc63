"""Four samples that every family's tests read, and what the family's tiny VLM makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genrecal.core.types import Sample, Turn

if TYPE_CHECKING:
    from genrecal.data.batch import Batch
    from genrecal.data.pair import TokenizedSample

# Of tests/tiny_families.py::WRITERS, which imports transformers; here the names alone, for parameters.
NAMES = (
    "gemma3",
    "idefics3",
    "internvl",
    "internvl_llama",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)


def noise(width: int, height: int, seed: int) -> Image.Image:
    """An image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(name: str, *texts: str) -> Sample:
    """A sample of user and assistant turns; its images are handed over beside it."""
    turns = tuple(
        Turn(role="assistant" if place % 2 else "user", text=text) for place, text in enumerate(texts)
    )
    return Sample(id=name, images=(), turns=turns, domain="knowledge", source="here")


# Images of several sizes, none, and two; a long text, and one with letters of several bytes; two turns.
SAMPLES: tuple[tuple[Sample, list[Image.Image]], ...] = (
    (
        conversation(
            "one", "<image>\nwhat is in the picture?", "a cat", "read the text.", "the quick brown fox"
        ),
        [noise(33, 57, 1)],
    ),
    (
        conversation(
            "text",
            "which bar is the highest? explain your answer. read the text. how many red circles are there?",
            "größer: 🙂 the third bar",
        ),
        [],
    ),
    (
        conversation("two", "<image>\nfirst, and\n<image>\nhow many red circles are there?", "B"),
        [noise(48, 48, 2), noise(120, 41, 3)],
    ),
    (conversation("short", "hi", "yes"), []),
)
WITHOUT_IMAGES = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFamily:
    """A tiny VLM's folder, its processor and the samples as it reads them."""

    name: str
    folder: Path
    processor: Any
    rows: list[TokenizedSample] = field(repr=False)

    def model(self) -> Any:
        """A fresh copy of the model, in evaluation mode."""
        from genrecal.models.processors import load_model

        return load_model(self.folder)

    def batch(self, places: Sequence[int] = (0, 1, 2, 3), *, blank: Any = None) -> Batch:
        """The samples at `places`, padded."""
        from genrecal.data.batch import collate_one

        rows = [self.rows[place] for place in places]
        return collate_one(rows, padding=self.processor.tokenizer.pad_token_id, blank=blank)


def read_family(name: str, folder: Path) -> ReadFamily:
    """Load the processor in `folder` and let it read the samples."""
    from genrecal.data.pair import tokenize
    from genrecal.models.processors import load_processor

    processor = load_processor(folder)
    rows = [tokenize(sample, processor, images, max_tokens=1024) for sample, images in SAMPLES]
    return ReadFamily(name=name, folder=folder, processor=processor, rows=rows)
