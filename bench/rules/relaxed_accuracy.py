"""ChartQA's relaxed accuracy: a number within 5% of the gold one, else the same text but for case.

`25%` is 0.25. A gold answer of zero has no 5%: its text must be met. "$10" and "1,234" are no numbers.
"""

from __future__ import annotations

TOLERANCE = 0.05


def is_right(reply: str, gold: str) -> bool:
    """Whether a reply meets a gold answer, as pix2struct's `relaxed_correctness` has it."""
    said, wanted = _number(reply), _number(gold)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= TOLERANCE
    return reply.lower() == gold.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
