"""Drawn images in cells of 24 px, each with its content in symbols and one label for every cell.

    Layout (what stands where)  --render-->  RGB image  +  labels_RC, one class for every cell

Square drawings have 3 x 3 cells (72 x 72 px): the teacher sees one image token a cell, while the student's
tokens, after its resize to 64 x 64 px, are not aligned with them. Wide drawings have 3 x 6 cells.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Split = Literal["pretrain", "distill", "test"]

CELL = 24
ROWS = 3
BAR_UNIT = CELL // 2  # a bar of value 1 is half a cell high
MAX_BAR = ROWS * CELL // BAR_UNIT

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {
    "red": (214, 40, 40),
    "green": (30, 160, 70),
    "blue": (40, 90, 220),
    "yellow": (240, 200, 30),
    "purple": (165, 60, 190),
    "black": (35, 35, 40),
}
# A run of the alphabet without the letters that name options.
LETTERS = "EFGHIJKLMNOP"
DIGITS = "0123456789"

CLASSES = (
    "empty",
    *(f"{color} {shape}" for color in COLORS for shape in SHAPES),
    *(f"letter {letter}" for letter in LETTERS),
    *(f"digit {digit}" for digit in DIGITS),
    *(f"{fill} {color} bar" for fill in ("half", "full") for color in COLORS),
)
_CLASS_IDS = {name: number for number, name in enumerate(CLASSES)}

# Which tenths of scikit-learn's handwritten digits a split draws from: no instance is in two splits.
_DIGIT_TENTHS = {"pretrain": range(0, 6), "distill": range(6, 8), "test": range(8, 10)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing in a drawing.

    `name` is a shape, a letter, a digit or "bar"; a bar stands on the bottom of its column and has a `value`
    of 1..6; a digit has the `instance` of scikit-learn's set that is drawn.
    """

    kind: Literal["shape", "letter", "digit", "bar"]
    name: str
    row: int
    column: int
    color: str = "black"
    value: int = 0
    instance: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a drawing shows; items in reading order."""

    kind: str
    columns: int
    items: tuple[Item, ...]

    @property
    def labels_RC(self) -> np.ndarray:
        """The class (an index of CLASSES) of every cell: int64, ROWS x columns."""
        labels_RC = np.zeros((ROWS, self.columns), np.int64)
        for item in self.items:
            if item.kind == "bar":
                full, half = divmod(item.value * BAR_UNIT, CELL)
                for level in range(full + bool(half)):
                    fill = "full" if level < full else "half"
                    labels_RC[ROWS - 1 - level, item.column] = _CLASS_IDS[f"{fill} {item.color} bar"]
            else:
                prefix = item.color if item.kind == "shape" else item.kind
                labels_RC[item.row, item.column] = _CLASS_IDS[f"{prefix} {item.name}"]
        return labels_RC


def compose(kind: str, rng: random.Random, *, wide: bool, split: Split) -> Layout:
    """A random layout of one of KINDS; kinds that have no wide form come out square."""
    maker, has_wide = KINDS[kind]
    columns = 6 if wide and has_wide else 3
    items = sorted(maker(rng, columns, split), key=lambda item: (item.row, item.column))
    return Layout(kind=kind, columns=columns, items=tuple(items))


def render(layout: Layout, rng: random.Random) -> Image.Image:
    """Draw a layout with its own shade, jitter and noise: two renderings of one layout differ.

    Returns: an RGB image of 24 px * columns by 72 px.
    """
    noise = np.random.default_rng(rng.getrandbits(64))
    height, width = ROWS * CELL, layout.columns * CELL
    shade = rng.randint(228, 252)
    canvas_HWC = np.empty((height, width, 3), np.float32)
    canvas_HWC[:] = [shade + rng.randint(-6, 3) for _ in range(3)]
    for item in layout.items:
        ink = np.array([value + rng.randint(-14, 14) for value in COLORS[item.color]], np.float32)
        if item.kind == "bar":
            bar_width, left = rng.randint(13, 17), item.column * CELL
            left += rng.randint(2, CELL - bar_width - 2)
            canvas_HWC[height - item.value * BAR_UNIT :, left : left + bar_width] = ink
            continue
        mask_SS = _mask(item, rng)
        edge = mask_SS.shape[0]
        slack = CELL - edge
        top, left = (start * CELL + _jitter(slack, rng) for start in (item.row, item.column))
        patch_SSC = canvas_HWC[top : top + edge, left : left + edge]
        patch_SSC += mask_SS[:, :, None] * (ink - patch_SSC)
    if any(item.kind == "bar" for item in layout.items):
        canvas_HWC[height - 1 :] = 60
    canvas_HWC += noise.integers(-4, 5, canvas_HWC.shape, np.int8)
    return Image.fromarray(canvas_HWC.clip(0, 255).astype(np.uint8))


def _jitter(slack: int, rng: random.Random) -> int:
    """An offset within the cell, at most 3 px from the middle."""
    reach = min(slack // 2, 3)
    return max(0, min(slack, slack // 2 + rng.randint(-reach, reach)))


def _mask(item: Item, rng: random.Random) -> np.ndarray:
    if item.kind == "shape":
        return _shape_mask(item.name, rng.randint(16, 20))
    if item.kind == "letter":
        return _letter_mask(item.name, rng.randint(19, 22))
    return _digit_mask(item.instance, rng.randint(19, 22))


@functools.cache
def _shape_mask(shape: str, size: int) -> np.ndarray:
    """Coverage 0..1 of a shape of `size` px, drawn eight times as large for smooth edges."""
    scale = 8
    image = Image.new("L", (size * scale, size * scale))
    draw = ImageDraw.Draw(image)
    last = size * scale - 1
    if shape == "circle":
        draw.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        inset = last * 0.06
        draw.rectangle((inset, inset, last - inset, last - inset), fill=255)
    elif shape == "triangle":
        draw.polygon(((last / 2, 0), (last, last), (0, last)), fill=255)
    else:
        radii = (0.54 * last, 0.23 * last)
        angles = (np.pi * (step / 5 - 0.5) for step in range(10))
        points = [
            (last / 2 + radii[step % 2] * np.cos(angle), 0.53 * last + radii[step % 2] * np.sin(angle))
            for step, angle in enumerate(angles)
        ]
        draw.polygon(points, fill=255)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32) / 255


@functools.cache
def _letter_mask(letter: str, size: int) -> np.ndarray:
    """Coverage 0..1 of a capital letter in a square of `size` px, in Pillow's own font, a little bold."""
    image = Image.new("L", (size, size))
    font = ImageFont.load_default(size=1.15 * size)
    ImageDraw.Draw(image).text(
        (size / 2, size / 2), letter, fill=255, font=font, anchor="mm", stroke_width=0.6
    )
    return np.asarray(image, np.float32) / 255


@functools.cache
def _digit_mask(instance: int, size: int) -> np.ndarray:
    """Coverage 0..1 of a handwritten digit, scaled from its 8 x 8 px."""
    image = Image.fromarray((_handwritten().images[instance] * (255 / 16)).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


@functools.cache
def _handwritten() -> Any:
    # Imported here: scikit-learn takes a second to import, and only drawing needs it.
    from sklearn.datasets import load_digits

    return load_digits()


@functools.cache
def _digit_instances(split: Split) -> dict[str, list[int]]:
    """Digit -> the instances that `split` may draw."""
    instances: dict[str, list[int]] = {digit: [] for digit in DIGITS}
    for instance, digit in enumerate(_handwritten().target):
        instances[str(digit)].append(instance)
    # Every tenth of each digit apart: the set runs through the digits in order, a stride over all would not.
    return {
        digit: [instance for place, instance in enumerate(many) if place % 10 in _DIGIT_TENTHS[split]]
        for digit, many in instances.items()
    }


def _cells(rng: random.Random, columns: int, count: int) -> list[tuple[int, int]]:
    return rng.sample([(row, column) for row in range(ROWS) for column in range(columns)], count)


def _shape(rng: random.Random, cell: tuple[int, int], name: str) -> Item:
    return Item(kind="shape", name=name, color=rng.choice(list(COLORS)), row=cell[0], column=cell[1])


def _digit(rng: random.Random, row: int, column: int, digit: str, split: Split) -> Item:
    instance = rng.choice(_digit_instances(split)[digit])
    return Item(kind="digit", name=digit, row=row, column=column, instance=instance)


def _single(rng: random.Random, columns: int, split: Split) -> list[Item]:
    return [_shape(rng, _cells(rng, columns, 1)[0], rng.choice(SHAPES))]


def _scene(rng: random.Random, columns: int, split: Split) -> list[Item]:
    count = rng.choice((2, 3, 3, 4, 4)) if columns == 3 else rng.randint(3, 5)
    return [_shape(rng, cell, rng.choice(SHAPES)) for cell in _cells(rng, columns, count)]


def _compare(rng: random.Random, columns: int, split: Split) -> list[Item]:
    """Two sorts of shapes, one more often than the other."""
    more, less = rng.sample(SHAPES, 2)
    few = rng.randint(1, 2)
    many = rng.randint(few + 1, 4)
    names = [more] * many + [less] * few
    return [
        _shape(rng, cell, name) for cell, name in zip(_cells(rng, columns, len(names)), names, strict=True)
    ]


def _bars(rng: random.Random, columns: int, split: Split) -> list[Item]:
    """Bars of different colours and different heights."""
    count = rng.randint(2, 3) if columns == 3 else rng.randint(4, 5)
    places = sorted(rng.sample(range(columns), count))
    colors = rng.sample(list(COLORS), count)
    values = rng.sample(range(1, MAX_BAR + 1), count)
    return [
        Item(kind="bar", name="bar", row=0, column=place, color=color, value=value)
        for place, color, value in zip(places, colors, values, strict=True)
    ]


def _text(rng: random.Random, columns: int, split: Split) -> list[Item]:
    count = rng.randint(2, 3) if columns == 3 else rng.randint(4, 6)
    row, start = rng.randrange(ROWS), rng.randint(0, columns - count)
    return [
        Item(kind="letter", name=letter, row=row, column=start + place)
        for place, letter in enumerate(rng.sample(LETTERS, count))
    ]


def _letter(rng: random.Random, columns: int, split: Split) -> list[Item]:
    row, column = _cells(rng, columns, 1)[0]
    return [Item(kind="letter", name=rng.choice(LETTERS[:-1]), row=row, column=column)]


def _one_digit(rng: random.Random, columns: int, split: Split) -> list[Item]:
    row, column = _cells(rng, columns, 1)[0]
    return [_digit(rng, row, column, rng.choice(DIGITS), split)]


def _two_digits(rng: random.Random, columns: int, split: Split) -> list[Item]:
    """Two different small digits: their sum has one digit."""
    row, places = rng.randrange(ROWS), sorted(rng.sample(range(columns), 2))
    digits = rng.sample(DIGITS[:5], 2)
    return [_digit(rng, row, place, digit, split) for place, digit in zip(places, digits, strict=True)]


def _number(rng: random.Random, columns: int, split: Split) -> list[Item]:
    count = rng.randint(2, 3) if columns == 3 else rng.randint(4, 6)
    row, start = rng.randrange(ROWS), rng.randint(0, columns - count)
    return [_digit(rng, row, start + place, rng.choice(DIGITS), split) for place in range(count)]


def _mosaic(rng: random.Random, columns: int, split: Split) -> list[Item]:
    """Something in most cells, whatever it is: for encoders alone, nobody asks about it."""
    items = []
    for row, column in _cells(rng, columns, rng.randint(columns, ROWS * columns)):
        kind = rng.choice(("shape", "letter", "digit"))
        if kind == "shape":
            items.append(_shape(rng, (row, column), rng.choice(SHAPES)))
        elif kind == "letter":
            items.append(Item(kind="letter", name=rng.choice(LETTERS), row=row, column=column))
        else:
            items.append(_digit(rng, row, column, rng.choice(DIGITS), split))
    return items


# Kind -> (its maker, whether it has a wide form).
KINDS = {
    "single": (_single, False),
    "scene": (_scene, True),
    "compare": (_compare, True),
    "bars": (_bars, True),
    "text": (_text, True),
    "letter": (_letter, False),
    "digit": (_one_digit, False),
    "sum": (_two_digits, False),
    "number": (_number, True),
    "mosaic": (_mosaic, True),
}
