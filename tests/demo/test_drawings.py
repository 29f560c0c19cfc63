import random

import numpy as np
import pytest
from PIL import Image

from genrecal.demo import drawings
from genrecal.demo.drawings import CELL, CLASSES, KINDS, LETTERS, ROWS, compose, render


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", [False, True])
def test_labels_say_what_the_pixels_show(kind, wide):
    rng = random.Random(f"{kind}{wide}")
    for _ in range(20):
        layout = compose(kind, rng, wide=wide, split="test")
        image = render(layout, rng)
        assert image.size == (layout.columns * CELL, ROWS * CELL)
        pixels_HWC = np.asarray(image).astype(int)
        background = np.median(pixels_HWC[: CELL // 4].reshape(-1, 3), axis=0)
        if kind == "bars":
            background = pixels_HWC[:, :2].reshape(-1, 3).max(axis=0)  # bars keep two pixels from the edge
        for row in range(ROWS):
            for column in range(layout.columns):
                # Without the last pixel rows, where charts have their axis.
                cell = pixels_HWC[row * CELL : (row + 1) * CELL - 2, column * CELL : (column + 1) * CELL]
                drawn = (np.abs(cell - background).max(axis=-1) > 40).mean()
                name = CLASSES[layout.labels_RC[row, column]]
                assert (drawn > 0.03) == (name != "empty"), (name, drawn)


def test_two_renderings_of_a_layout_differ_and_a_seed_repeats_one():
    layout = compose("scene", random.Random(1), wide=False, split="test")
    first, again, other = (render(layout, random.Random(seed)).tobytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_bars_are_labelled_by_half_cells():
    bar = drawings.Item(kind="bar", name="bar", row=0, column=1, color="red", value=3)
    labels_RC = drawings.Layout(kind="bars", columns=3, items=(bar,)).labels_RC
    assert [CLASSES[label] for label in labels_RC[:, 1]] == ["empty", "half red bar", "full red bar"]
    assert (labels_RC[:, [0, 2]] == 0).all()


def test_no_handwritten_digit_is_in_two_splits():
    pools = {
        split: {instance for many in drawings._digit_instances(split).values() for instance in many}
        for split in ("pretrain", "distill", "test")
    }
    assert sum(map(len, pools.values())) == len(set().union(*pools.values())) == 1797
    for split in pools:
        assert set(drawings._digit_instances(split)) == set("0123456789")
        assert min(len(many) for many in drawings._digit_instances(split).values()) > 30


def test_letters_stay_apart_after_the_students_resize():
    """Every letter, scaled from 24 to 64/3 px a cell, is nearest to itself among all of them."""

    def small(letter, jitter):
        item = drawings.Item(kind="letter", name=letter, row=1, column=1)
        layout = drawings.Layout(kind="letter", columns=3, items=(item,))
        image = render(layout, random.Random(jitter)).resize((64, 64), Image.Resampling.BICUBIC)
        ink_HW = np.asarray(image.convert("L")) < 128
        rows, columns = np.where(ink_HW)
        box = Image.fromarray(ink_HW[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
        return np.asarray(
            box.convert("L").resize((10, 10), Image.Resampling.BOX), float
        ), box.width / box.height

    # I is told by its narrow box alone: scaled to a square it is a full block.
    known = {letter: small(letter, 0) for letter in LETTERS}
    for letter in LETTERS:
        pixels, aspect = small(letter, 1)
        nearest = min(
            LETTERS,
            key=lambda other: np.abs(known[other][0] - pixels).mean() + 100 * abs(known[other][1] - aspect),
        )
        assert nearest == letter
