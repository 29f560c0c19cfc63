"""Short answers to questions about photographs, as the VQA challenge asks for and marks them."""

from __future__ import annotations

from bench.prompt_parts import images_first
from bench.rules import vqa_accuracy
from bench.scoring import Mark
from bench.task import Row
from bench.types import Query

LAST_LINE = "\nAnswer the question using a single word or phrase."
TEMPLATE = f"image, then {{question}}{LAST_LINE}"


def prompt(row: Row) -> Query:
    """Image, question, the instruction."""
    return images_first(row, row.question + LAST_LINE)


def official(row: Row, reply: str) -> Mark:
    """The VQA challenge's accuracy."""
    return Mark(hit=vqa_accuracy.official(reply, row.gold), read=reply[:40])
