"""How far a build is from the checkpoint that it comes from: torch against ONNX Runtime, end to end.

    query -> processor -> torch model -> greedy answer, logits of it     (the checkpoint)
    query -> edge's preprocessing and prompt -> graphs -> the same       (the build)

The build is opened as the device opens it, so a difference in preprocessing or in the prompt shows as well
as one in a graph. Logits are compared on the checkpoint's answer, which is forced on the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.table import Table

from edge import build as layout
from edge.model import EdgeModel
from genrecal.core.console import console
from genrecal.core.errors import BuildError
from genrecal.export.reference import Query, Reference, reference_of

LOGITS_TOLERANCE = 1e-3
MAX_NEW_TOKENS = 32
# Width and height: square, both orientations, odd, tiny, and larger than small students take.
_SIZES = ((64, 64), (160, 90), (90, 240), (37, 53), (320, 320), (640, 480))
_QUESTIONS = ("What is in the image?", "Describe the image.", "Which color is shown?", "How many are there?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A float32 transformers model in evaluation mode and its processor."""

    model: Any
    processor: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the checkpoint makes of one query."""

    query: Query
    prompt_ids_S: NDArray[np.int64]
    embeds_SD: NDArray[np.float32]
    features_MD: NDArray[np.float32] | None
    """Image features; None where the query has no image."""
    answer_ids: tuple[int, ...]
    """The greedy answer, the end-of-turn token included where it was generated."""
    logits_AV: NDArray[np.float32]
    """Row i predicts `answer_ids[i]`."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """A build against its checkpoint on a set of queries; differences are the largest absolute ones."""

    queries: int
    answer_tokens: int
    prompts_equal: int
    """Queries whose token ids are the processor's."""
    difference: dict[str, float]
    """Graph -> difference of its output; each graph is fed by the build's own preprocessing."""
    relative_logits_error: float
    """Norm of the logits' difference over their norm."""
    forced_top1: float
    """Share of the answer tokens whose likeliest token is the checkpoint's, its answer being forced."""
    greedy_answers_equal: int
    """Queries whose whole greedy answer is the checkpoint's, token by token."""
    worst: dict[str, Any]
    """The query with the largest difference in the logits."""


def default_queries() -> list[Query]:
    """Drawn images of several sizes with generic questions, two images in one query, and text alone."""
    images = [_drawing(size, seed) for seed, size in enumerate(_SIZES)]
    queries: list[Query] = [
        (image, _QUESTIONS[number % len(_QUESTIONS)]) for number, image in enumerate(images)
    ]
    return [*queries, (images[0], "and", images[1], "What differs?"), ("What is a circle?",)]


def checkpoint_answers(checkpoint: Checkpoint, queries: Sequence[Query]) -> list[Expected]:
    """Answer every query with torch, greedily, and keep what a build is compared with."""
    if not queries:
        raise BuildError("the parity report needs at least one query")
    references, _ = reference_of(
        checkpoint.model, checkpoint.processor, queries, max_new_tokens=MAX_NEW_TOKENS
    )
    return expected_answers(checkpoint, queries, references)


def expected_answers(
    checkpoint: Checkpoint, queries: Sequence[Query], references: Sequence[Reference]
) -> list[Expected]:
    """The same from what the graphs are compared with, `reference.reference_of` of the queries."""
    return [
        _expected(checkpoint, query, reference) for query, reference in zip(queries, references, strict=True)
    ]


def compare(expected: Sequence[Expected], folder: Path) -> Parity:
    """Answer the same queries with the build in `folder` and measure the differences."""
    model = EdgeModel.open(folder, verify=False)
    difference = dict.fromkeys(layout.GRAPHS, 0.0)
    prompts = answers = tokens = top1 = 0
    squared_error = squared = 0.0
    worst: dict[str, Any] = {}
    for entry in expected:
        prompt = model.prompt(entry.query)
        prompts += int(np.array_equal(prompt.ids_S, entry.prompt_ids_S))
        if entry.features_MD is not None:
            features_MD = model.image_features(entry.query)
            _note(difference, layout.VISION_ENCODER, features_MD, entry.features_MD)
        embeds_SD = model.sessions.embed(entry.prompt_ids_S[None])[0]
        _note(difference, layout.EMBED_TOKENS, embeds_SD, entry.embeds_SD)
        logits_AV = model.forced_logits(entry.query, entry.answer_ids)[: len(entry.answer_ids)]
        largest = _note(difference, layout.DECODER, logits_AV, entry.logits_AV)
        squared_error += float(np.square(logits_AV - entry.logits_AV, dtype=np.float64).sum())
        squared += float(np.square(entry.logits_AV, dtype=np.float64).sum())
        tokens += len(entry.answer_ids)
        top1 += int((logits_AV.argmax(1) == entry.logits_AV.argmax(1)).sum())
        answer = model.answer(entry.query, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        answers += answer.token_ids == entry.answer_ids
        if not worst or largest > worst["difference"]:
            worst = {
                "difference": largest,
                "query": [_shown(part) for part in entry.query],
                "checkpoint": entry.text,
                "build": answer.text,
            }
    return Parity(
        queries=len(expected),
        answer_tokens=tokens,
        prompts_equal=prompts,
        difference=difference,
        relative_logits_error=(squared_error / squared) ** 0.5,
        forced_top1=top1 / tokens,
        greedy_answers_equal=answers,
        worst=worst,
    )


def require_equal(found: Parity, *, where: Path) -> None:
    """The gate that fp32 graphs pass.

    Raises:
        BuildError: prompts, logits (beyond 1e-3) or greedy answers differ from the checkpoint's.
    """
    problem = None
    if found.prompts_equal < found.queries:
        problem = f"{found.queries - found.prompts_equal} of {found.queries} prompts have other token ids"
    # Written so that a NaN fails.
    elif not found.difference[layout.DECODER] <= LOGITS_TOLERANCE:
        problem = f"logits differ by {found.difference[layout.DECODER]:.2g}, allowed is {LOGITS_TOLERANCE:g}"
    elif found.greedy_answers_equal < found.queries:
        problem = f"{found.queries - found.greedy_answers_equal} of {found.queries} greedy answers differ"
    if problem:
        raise BuildError(
            f"the fp32 graphs are not this checkpoint: {problem} (worst query: {found.worst['query']})",
            where=where,
            fix="Please report this with the model's config.json",
        )


def as_json(report: dict[str, Parity]) -> dict[str, Any]:
    """The report by precision, for parity.json."""
    return {
        "reference": "torch float32",
        "logits_tolerance": LOGITS_TOLERANCE,
        "max_new_tokens": MAX_NEW_TOKENS,
        "precisions": {precision: asdict(found) for precision, found in report.items()},
    }


def print_report(report: dict[str, Parity]) -> None:
    """A row for each precision that was compared with torch."""
    table = Table(title="parity with torch fp32", title_justify="left")
    for heading in (
        "precision",
        "vision",
        "embedding",
        "logits",
        "relative",
        "forced top-1",
        "equal answers",
    ):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for precision, found in report.items():
        table.add_row(
            precision,
            *(f"{found.difference[graph]:.1e}" for graph in layout.GRAPHS),
            f"{found.relative_logits_error:.1e}",
            f"{100 * found.forced_top1:.1f}%",
            f"{found.greedy_answers_equal}/{found.queries}",
        )
    console.print(table)


def _expected(checkpoint: Checkpoint, query: Query, reference: Reference) -> Expected:
    prompt_ids_S = reference.ids_S[: reference.prompt]
    answer_ids = reference.ids_S[reference.prompt :].tolist()
    with torch.no_grad():
        embeds_SD = checkpoint.model.get_input_embeddings()(torch.from_numpy(prompt_ids_S)).numpy()
    return Expected(
        query=query,
        prompt_ids_S=prompt_ids_S,
        embeds_SD=embeds_SD,
        features_MD=reference.embeds_SD[reference.is_image_S] if reference.feeds else None,
        answer_ids=tuple(answer_ids),
        logits_AV=reference.logits_AV,
        text=checkpoint.processor.tokenizer.decode(answer_ids, skip_special_tokens=True),
    )


def _note(difference: dict[str, float], graph: str, found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Keep the largest difference of a graph's output; another shape or a NaN counts as infinite."""
    largest = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    largest = np.inf if np.isnan(largest) else largest
    difference[graph] = max(difference[graph], largest)
    return largest


def _shown(part: str | Image.Image) -> str:
    return part if isinstance(part, str) else f"<image {part.width}x{part.height}>"


def _drawing(size: tuple[int, int], seed: int) -> Image.Image:
    """Shapes of random place and colour on a gradient: edges and slopes, as in charts and photographs."""
    width, height = size
    rng = np.random.default_rng(seed)
    slope = (
        np.linspace(0, 255, width)[None, :, None] * rng.random(3) + np.linspace(0, 99, height)[:, None, None]
    )
    image = Image.fromarray(np.clip(slope, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(6):
        left, right = sorted(rng.integers(0, width, 2).tolist())
        top, bottom = sorted(rng.integers(0, height, 2).tolist())
        color = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if number % 2 else draw.rectangle)((left, top, right, bottom), fill=color)
    return image
