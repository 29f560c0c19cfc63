"""Boxes in replies, and how far two boxes overlap; corners x1, y1, x2, y2."""

from __future__ import annotations

import re

Box = tuple[float, float, float, float]

_NUMBER = r"-?\d+(?:\.\d+)?"
_IN_BRACKETS = re.compile(rf"\[\s*({_NUMBER}),\s*({_NUMBER}),\s*({_NUMBER}),\s*({_NUMBER})\s*\]")
_KIT_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_KIT_GAP = r"(?:\s*,\s*|\s+)"
_KIT_IN_BRACKETS = re.compile(
    rf"\[\s*({_KIT_NUMBER}){_KIT_GAP}({_KIT_NUMBER}){_KIT_GAP}({_KIT_NUMBER}){_KIT_GAP}({_KIT_NUMBER})\s*\]"
)
_KIT_FRACTION, _KIT_PER_MILLE = 1.5, 1000


def box_of(reply: str) -> Box | None:
    """The first four numbers in square brackets with commas between them."""
    match = _IN_BRACKETS.search(reply)
    return _box(match.groups()) if match else None


def kit_box_of(reply: str, width: float, height: float) -> Box | None:
    """What VLMEvalKit takes for a box, in pixels.

    Brackets with commas or spaces, else the first four numbers anywhere. Numbers up to 1.5 are fractions,
    up to 1000 per mille (a box in pixels too), larger ones pixels; corners are cut to the image and ordered.

    Args:
        reply: raw.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    match = _KIT_IN_BRACKETS.search(reply)
    numbers = match.groups() if match else tuple(re.findall(_KIT_NUMBER, reply)[:4])
    if len(numbers) < 4:
        return None
    box = _box(numbers)
    largest = max(abs(value) for value in box)
    if largest <= _KIT_PER_MILLE:
        unit = 1.0 if largest <= _KIT_FRACTION else float(_KIT_PER_MILLE)
        box = (box[0] / unit * width, box[1] / unit * height, box[2] / unit * width, box[3] / unit * height)
    left, right = (min(max(value, 0.0), width) for value in box[0::2])
    top, bottom = (min(max(value, 0.0), height) for value in box[1::2])
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union; zero where the union is empty.

    Corners are taken as they come: a box whose corners are turned round has a negative area, as in lmms-eval.
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    union = _area(one) + _area(other) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(numbers: tuple[str, ...]) -> Box:
    left, top, right, bottom = (float(number) for number in numbers)
    return left, top, right, bottom
