"""To look at: drawings of every kind beside what the student sees of them.

python tests/demo/contact_sheet.py sheet.png
"""

import random
import sys
from pathlib import Path

from PIL import Image

from genrecal.demo.drawings import KINDS, compose, render

SCALE, GAP, MANY, STUDENT_PATCHES = 2, 6, 6, 16


def contact_sheet(seed: int) -> Image.Image:
    """A row for every kind: square and wide drawings, each followed by the student's resize of it."""
    rng = random.Random(seed)
    rows = []
    for kind in KINDS:
        row = []
        for place in range(MANY):
            drawing = render(compose(kind, rng, wide=place == MANY - 1, split="test"), rng)
            small = [round(edge / STUDENT_PATCHES) * STUDENT_PATCHES for edge in drawing.size]
            row += [drawing, drawing.resize(small, Image.Resampling.BICUBIC)]
        rows.append(row)
    width = max(sum(image.width + GAP for image in row) for row in rows)
    height = max(image.height for row in rows for image in row) + GAP
    sheet = Image.new("RGB", (width, height * len(rows)), "grey")
    for number, row in enumerate(rows):
        left = 0
        for image in row:
            sheet.paste(image, (left, number * height))
            left += image.width + GAP
    return sheet.resize((sheet.width * SCALE, sheet.height * SCALE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    contact_sheet(0).save(Path(sys.argv[1]))
