"""How much of a micro-batch is padding, and how long ranks wait for the longest, with and without buckets.

    python -m benchmarks.padding        writes RESULTS/padding.json; a minute on one core

Lengths are drawn, not read: kinds of data with image sizes and lengths of texts as such sets may have them
(KINDS), and images' tokens as the processors of Qwen2-VL and InternVL count them. What the order sorts by is
an estimate: a quarter of the characters and the tokens of images of these sizes (genrecal/data/lengths.py).
Beside it stands one that knows the number of images alone, which costs no look at their headers.

    padded     share of the positions of all micro-batches that hold no token
    waited     share of the ranks' positions spent beside a longer micro-batch: at every layer ZeRO-3 lets all
               ranks wait for the last one; with padding in it
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from genrecal.core.console import console
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions
from genrecal.data.lengths import CHARACTERS_PER_TOKEN
from genrecal.data.mixture import IMAGE_CHARACTERS
from genrecal.data.order import step_indices

RESULT = Path(__file__).parent / "results" / "padding.json"
SAMPLES, SEED, STEPS = 2**18, 0, 16
# Tokens of a text are so far from a quarter of its characters: the logarithms' standard deviation.
TEXT_SPREAD = 0.25
# As the published checkpoints have them: pixels of an image in Qwen2-VL, tiles and tokens in InternVL 2.5.
QWEN_PIXELS, TILE, TILES, TILE_TOKENS = (3_136, 12_845_056), 448, 12, 256
MAX_TOKENS, TEMPLATE_TOKENS = 8192, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of data: its share, image sizes in pixels, and the medians of its texts in characters."""

    share: float
    sizes: tuple[tuple[int, int], ...]
    question: int
    answer: int
    spread: float = 0.8  # of the lengths' logarithms
    images: tuple[float, ...] = (0.0, 1.0)  # probabilities of 0, 1, 2, … images


KINDS = {
    "photographs, asked about": Kind(
        share=0.35, sizes=((640, 480), (480, 640), (640, 427), (500, 375)), question=120, answer=180
    ),
    "knowledge and science": Kind(
        share=0.2,
        sizes=((300, 200), (500, 400), (700, 500), (1024, 768)),
        question=350,
        answer=700,
        images=(0.1, 0.8, 0.07, 0.03),
    ),
    "charts": Kind(share=0.15, sizes=((850, 600), (1000, 700), (600, 400)), question=100, answer=60),
    "documents": Kind(share=0.15, sizes=((1700, 2200), (1240, 1754), (800, 1100)), question=90, answer=120),
    "text alone": Kind(share=0.15, sizes=(), question=500, answer=1200, spread=1.1, images=(1.0,)),
}
# Ranks, micro-batch and accumulation: the paper's stage 3 on 256 GPUs, and a node.
SETTINGS = {"256 ranks x 4 x 16": (256, 4, 16), "8 ranks x 4 x 4": (8, 4, 4), "8 ranks x 8 x 2": (8, 8, 2)}
WINDOWS = (0, 1, 4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of every sample, [N]."""

    tokens: dict[str, np.ndarray]  # by family
    estimates: dict[str, np.ndarray]  # by family, what the order sorts by
    by_count: np.ndarray  # characters, and as many more for every image


def draw(samples: int) -> Lengths:
    """Samples of all kinds in their shares, in any order."""
    rng = np.random.default_rng(SEED)
    by_count = np.zeros(samples, np.int64)
    tokens, estimates = ({family: np.zeros(samples) for family in COUNTERS} for _ in range(2))
    kinds = rng.choice(len(KINDS), samples, p=[kind.share for kind in KINDS.values()])
    for number, kind in enumerate(KINDS.values()):
        here = np.flatnonzero(kinds == number)
        text = sum(
            rng.lognormal(np.log(median), kind.spread, len(here)) for median in (kind.question, kind.answer)
        )
        images = rng.choice(len(kind.images), len(here), p=kind.images)
        by_count[here] = text.astype(np.int64) + images * IMAGE_CHARACTERS
        text_tokens = text / CHARACTERS_PER_TOKEN * rng.lognormal(0, TEXT_SPREAD, len(here))
        for family, counter in COUNTERS.items():
            sizes = np.array([counter(*size) for size in kind.sizes] or [0])
            of_images = np.array([sizes[rng.integers(0, len(sizes), count)].sum() for count in images])
            tokens[family][here] = np.minimum(text_tokens + TEMPLATE_TOKENS + of_images, MAX_TOKENS)
            estimates[family][here] = text.astype(np.int64) // CHARACTERS_PER_TOKEN + of_images
    return Lengths(tokens=tokens, estimates=estimates, by_count=by_count)


def qwen_tokens(width: int, height: int) -> int:
    rows, columns = smart_resize(height, width, 28, *QWEN_PIXELS)
    return rows * columns // 28**2


def internvl_tokens(width: int, height: int) -> int:
    columns, rows = get_optimal_tiled_canvas((height, width), (TILE, TILE), 1, TILES)
    tiles = columns * rows
    return TILE_TOKENS * (tiles + (tiles > 1))


COUNTERS = {"Qwen2-VL": qwen_tokens, "InternVL 2.5": internvl_tokens}


def measure(
    lengths: np.ndarray, tokens: np.ndarray, setting: tuple[int, int, int], window: int
) -> dict[str, Any]:
    """padded and waited over STEPS steps."""
    ranks, micro_batch, accumulation = setting
    read = [
        step_indices(
            samples=len(tokens),
            seed=SEED,
            step=step,
            rank=0,
            ranks=1,
            micro_batch=micro_batch,
            accumulation=ranks * accumulation,
            window=window,
            steps=STEPS,
            lengths=lengths if window else None,
        )
        for step in range(STEPS)
    ]
    # Micro-batch m of rank r is the step's m * ranks + r.
    held = tokens[np.array(read)].reshape(STEPS, accumulation, ranks, micro_batch)
    positions = held.max(-1)
    return {
        "padded": round(1 - held.sum() / (positions.sum() * micro_batch), 4),
        "waited": round(1 - held.sum() / (positions.max(-1).sum() * ranks * micro_batch), 4),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lengths = draw(SAMPLES)
    found: dict[str, Any] = {}
    for family, tokens in lengths.tokens.items():
        estimate = lengths.estimates[family]
        found[family] = {
            "tokens": {f"p{percent}": int(np.percentile(tokens, percent)) for percent in (1, 10, 50, 90, 99)},
            "rank_correlation": {
                "estimate": round(float(spearmanr(estimate, tokens).statistic), 3),
                "by count": round(float(spearmanr(lengths.by_count, tokens).statistic), 3),
            },
            "settings": {
                name: {
                    **{f"buckets {window}": measure(estimate, tokens, setting, window) for window in WINDOWS},
                    "buckets 1, by count": measure(lengths.by_count, tokens, setting, 1),
                    "buckets 1, exact": measure(tokens, tokens, setting, 1),
                }
                for name, setting in SETTINGS.items()
            },
        }
        console.print_json(data={family: found[family]})
    facts = {
        "samples": SAMPLES,
        "steps": STEPS,
        "text_spread": TEXT_SPREAD,
        "python": platform.python_version(),
    }
    write_json(RESULT, {**facts, "versions": installed_versions(), "families": found})


if __name__ == "__main__":
    main()
