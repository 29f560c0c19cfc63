"""Time to the first token of a first and of a second question on the same image.

    python -m benchmarks.reuse        writes RESULTS/reuse.json; some minutes on one core

The model is a Qwen2-VL with random weights: what an answer says does not matter here, and the runtime
computes the same whatever the weights are. Each turn asks, with nothing kept, a first question about an image
of its own and then a second one; turns of all cases take turns, so that other work falls on all of them.

    image first        the usual prompt: features, keys and values of the image are kept
    question first     the text before the image differs, so that the features alone are kept
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge.generate import Answer
from edge.model import EdgeModel
from edge.prompt import Part
from genrecal.core.console import console
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions
from genrecal.demo.pair import Qwen2VLShape, write_qwen2_vl
from genrecal.export.build import export_student

RESULT = Path(__file__).parent / "results" / "reuse.json"
GOAL = 0.3  # the second question's time as a share of the first one's
SHAPE = Qwen2VLShape(
    vocabulary=512,
    patch=14,
    min_pixels=56 * 56,
    max_pixels=1024 * 1024,
    vision_hidden=640,
    vision_layers=8,
    vision_heads=8,
    hidden=768,
    layers=8,
    heads=12,
    key_value_heads=2,
    intermediate=3072,
)
TEXT = "what is in the picture and which of the bars of this chart is the highest one of all"
WORDS = TEXT.split(" ")
SIZES = ((224, 224), (448, 448), (672, 448))
QUESTION_WORDS = (8, 64)
TURNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Medians over the turns of one case, in seconds."""

    prompt_tokens: int
    image_tokens: int
    reused_tokens: int
    """Of the second question's prompt."""
    first_s: float
    second_s: float
    first_parts_s: dict[str, float]
    second_parts_s: dict[str, float]
    ratio: float
    """The median of the turns' own ratios."""
    worst_ratio: float

    @property
    def counts(self) -> bool:
        """Whether the goal is for such a case: the image stands first and is no shorter than what is asked.

        A question that is longer than its image is mostly prefill, which nothing can spare.
        """
        return self.reused_tokens > 0 and self.prompt_tokens - self.reused_tokens <= self.image_tokens


def cases() -> dict[str, tuple[tuple[int, int], int, bool]]:
    """Name -> image size, words of the question, whether the image stands first."""
    found = {
        f"{width}x{height}, {words} words": ((width, height), words, True)
        for width, height in SIZES
        for words in QUESTION_WORDS
    }
    return {**found, "448x448, 8 words, question first": ((448, 448), 8, False)}


def turn(model: EdgeModel, size: tuple[int, int], words: int, image_first: bool, seed: int) -> list[Answer]:
    """A first and a second question on one new image."""
    rng = np.random.default_rng([seed, *size, words])
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    model.forget()
    answers = []
    for _ in range(2):
        question = " ".join(rng.choice(WORDS, words))
        query: tuple[Part, ...] = (image, question) if image_first else (question, image)
        answers.append(model.answer(query, do_sample=False, max_new_tokens=1))
    return answers


def summarise(turns: list[list[Answer]], image_tokens: int) -> Times:
    firsts, seconds = ([pair[place] for pair in turns] for place in (0, 1))
    ratios = [second.first_token_s / first.first_token_s for first, second in turns]

    def parts(answers: list[Answer]) -> dict[str, float]:
        names = ("prepare_s", "vision_s", "prefill_s")
        return {name: statistics.median(getattr(one, name) for one in answers) for name in names}

    return Times(
        prompt_tokens=seconds[0].prompt_tokens,
        image_tokens=image_tokens,
        reused_tokens=seconds[0].reused_tokens,
        first_s=statistics.median(one.first_token_s for one in firsts),
        second_s=statistics.median(one.first_token_s for one in seconds),
        first_parts_s=parts(firsts),
        second_parts_s=parts(seconds),
        ratio=statistics.median(ratios),
        worst_ratio=max(ratios),
    )


def measure(model: EdgeModel, turns: int) -> dict[str, Times]:
    """Every case, in turns; one turn of each before, not counted."""
    asked = cases()
    taken: dict[str, list[list[Answer]]] = {name: [] for name in asked}
    for seed in range(turns + 1):
        for name, (size, words, image_first) in asked.items():
            answers = turn(model, size, words, image_first, seed)
            if seed:
                taken[name].append(answers)
    return {name: summarise(pairs, tokens_of(model, asked[name][0])) for name, pairs in taken.items()}


def tokens_of(model: EdgeModel, size: tuple[int, int]) -> int:
    return model.prompt((Image.new("RGB", size),)).looks[0].tokens


def build(folder: Path, shape: Qwen2VLShape) -> EdgeModel:
    """A student of that shape with random weights, exported and opened."""
    write_qwen2_vl(folder / "student", [TEXT] * 4, shape=shape, seed=0)
    export_student(folder / "student", folder / "build", precision="fp32", provenance={})
    return EdgeModel.open(folder / "build", threads=1)


def report(times: dict[str, Times]) -> dict[str, Any]:
    return {
        "goal": GOAL,
        "ratio": max(one.ratio for one in times.values() if one.counts),
        "shape": SHAPE.model_dump(),
        "turns": TURNS,
        "threads": 1,
        "cases": {name: asdict(one) for name, one in times.items()},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": installed_versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    result = parser.parse_args().result
    with tempfile.TemporaryDirectory() as scratch:
        times = measure(build(Path(scratch), SHAPE), TURNS)
    write_json(result, report(times))
    for name, one in times.items():
        console.print(
            f"{name:36} {one.prompt_tokens:5} tokens, first {one.first_s:7.3f} s, "
            f"second {one.second_s:7.3f} s, ratio {one.ratio:.3f} (worst {one.worst_ratio:.3f})",
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
