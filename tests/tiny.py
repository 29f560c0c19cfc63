"""The two smallest VLMs that are still real ones, and a little LLaVA data set: what most tests stand on.

    teacher   InternVL, hidden size 64, tiles of 48 px          student   Qwen2-VL, hidden size 32, any size

Everything is a pure function of the code here: two calls write the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

QUESTIONS = (
    "what is in the picture?",
    "how many red circles are there?\nA. 1\nB. 2\nC. 3\nAnswer with the option's letter.",
    "which bar is the highest? explain your answer.",
    "read the text.",
)
ANSWERS = (
    "a cat",
    "B",
    "the third bar is the highest because it ends above all the other bars of the chart.",
    "the quick brown fox",
    "there are two circles, so the answer is B.",
)
CORPUS = (*QUESTIONS, *ANSWERS, "user\nassistant\n")
# Width and height; squares, both orientations, and sizes that no patch divides.
IMAGE_SIZES = ((48, 48), (96, 48), (40, 80), (33, 57), (64, 64), (120, 41))
DOMAIN_CYCLE = ("knowledge", "general_vqa", "science_math", "chart_document")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyPair:
    """Folders of the two models."""

    teacher: Path
    student: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyData:
    """The data set's JSON file; its images lie in `images/` beside it."""

    path: Path
    samples: int
    without_general_vqa: int


def write_pair(folder: Path) -> TinyPair:
    """Write both VLMs with random weights below `folder`."""
    from genrecal.demo.pair import InternVLShape, Qwen2VLShape, write_internvl, write_qwen2_vl

    pair = TinyPair(teacher=folder / "teacher", student=folder / "student")
    teacher = InternVLShape(
        vocabulary=340,
        tile=48,
        patch=12,
        max_tiles=3,
        vision_hidden=32,
        vision_layers=1,
        vision_heads=2,
        hidden=64,
        layers=2,
        heads=4,
        key_value_heads=2,
        intermediate=96,
    )
    student = Qwen2VLShape(
        vocabulary=310,
        patch=8,
        max_pixels=96 * 96,
        vision_hidden=32,
        vision_layers=1,
        vision_heads=2,
        hidden=32,
        layers=2,
        heads=2,
        key_value_heads=1,
        intermediate=64,
    )
    write_internvl(pair.teacher, CORPUS, shape=teacher, seed=0)
    write_qwen2_vl(pair.student, CORPUS, shape=student, seed=1)
    return pair


def write_data(folder: Path, *, samples: int = 30) -> TinyData:
    """Write `samples` conversations with noise images of several sizes; two in five are text alone."""
    (folder / "images").mkdir(parents=True)
    rows = [_row(folder, number) for number in range(samples)]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    kept = sum(row["domain"] != "general_vqa" for row in rows)
    return TinyData(path=folder / "data.json", samples=samples, without_general_vqa=kept)


def _row(folder: Path, number: int) -> dict[str, Any]:
    names = [] if number % 5 in (1, 3) else [f"images/{number}.png"]
    question = "<image>\n" * len(names) + QUESTIONS[number % len(QUESTIONS)]
    turns = [question, ANSWERS[(number * 3) % len(ANSWERS)]]
    if number % 10 == 4:  # two images in one question
        names.append(f"images/{number}_b.png")
        turns[0] = "<image>\n<image>\n" + QUESTIONS[0]
    if number % 10 == 7:  # two turns: the first answer is context
        turns += [QUESTIONS[0], ANSWERS[0]]
    for position, name in enumerate(names):
        width, height = IMAGE_SIZES[(number + position) % len(IMAGE_SIZES)]
        noise = np.random.default_rng([number, position]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return {
        "id": f"tiny-{number}",
        **({"image": names[0] if len(names) == 1 else names} if names else {}),
        "domain": DOMAIN_CYCLE[number % len(DOMAIN_CYCLE)],
        "conversations": [
            {"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(turns)
        ],
    }


def sharpen(folder: Path, factor: float) -> Path:
    """Make the weights of a model in its folder larger, in place.

    Fresh ones are so small that attention is nearly uniform: no wrong position, padding or image would show.
    """
    import torch

    from genrecal.models.processors import load_model

    model = load_model(folder, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(factor)
    model.save_pretrained(folder)
    return folder
