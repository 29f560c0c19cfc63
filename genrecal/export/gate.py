"""The gate between fp32 graphs and a build, and the same measurements of every other precision.

    student -> torch -> references -> each graph against them (every student)
                           |
                           +-> the build, opened by the runtime: whole answers (students that fit)

A student of more than WHOLE_BYTES is read layer by layer by torch and never opened whole, with fewer and
shorter answers: memory stays that of the largest weight, or of one graph as it is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from genrecal.core.console import console
from genrecal.core.errors import BuildError
from genrecal.export import graph_parity, parity
from genrecal.export.freed import return_freed_memory
from genrecal.export.reference import Range, Reference, reference_of
from genrecal.export.skeleton import load_streamed
from genrecal.export.weights import weight_files
from genrecal.models.processors import load_model

# Weights in float32 of a student that torch and the runtime hold whole while they are compared.
WHOLE_BYTES = 2 << 30
# Of a larger one, evenly over those that are given: torch reads all weights again for every token.
STREAMED_QUERIES = 8
STREAMED_NEW_TOKENS = 8
STREAMED_CALIBRATION = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What torch in float32 makes of the queries."""

    references: list[Reference]
    range: Range
    answers: list[parity.Expected] | None
    """None for a student that is compared layer by layer."""


# precision -> share of answer tokens whose likeliest token must be the checkpoint's
MIN_AGREEMENT = {"int8": 0.98, "int4": 0.95}

# Each graph against torch, and whole answers where there are any.
Found = tuple[graph_parity.GraphParity, parity.Parity | None]


def expect(student: Path, processor: Any, queries: Sequence[parity.Query]) -> Expected:
    """Torch's answers; of a large student fewer ones, from weights that are read layer by layer."""
    if not queries:
        raise BuildError("the parity report needs at least one query")
    if is_large(student):
        references, found = _streamed(student, processor, _spread(queries, STREAMED_QUERIES))
        return Expected(references=references, range=found, answers=None)
    model = load_model(student, dtype=torch.float32)
    references, found = reference_of(model, processor, queries, max_new_tokens=parity.MAX_NEW_TOKENS)
    checkpoint = parity.Checkpoint(model=model, processor=processor)
    return Expected(
        references=references,
        range=found,
        answers=parity.expected_answers(checkpoint, queries, references),
    )


def calibrate(student: Path, processor: Any, queries: Sequence[parity.Query]) -> list[Reference]:
    """Torch's answers to what graphs are calibrated with; of a large student fewer and shorter ones."""
    if is_large(student):
        return _streamed(student, processor, _spread(queries, STREAMED_CALIBRATION))[0]
    model = load_model(student, dtype=torch.float32)
    return reference_of(model, processor, queries, max_new_tokens=parity.MAX_NEW_TOKENS)[0]


def is_large(student: Path) -> bool:
    """Whether this student is never opened whole."""
    stored = sum(path.stat().st_size for path in weight_files(student))
    return stored * torch.float32.itemsize // _stored_type(student).itemsize > WHOLE_BYTES


def _spread(queries: Sequence[parity.Query], count: int) -> list[parity.Query]:
    """`count` of the queries, evenly from the first to the last, which may come from other sources."""
    places = np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(int)
    return [queries[place] for place in places]


def _streamed(
    student: Path, processor: Any, queries: Sequence[parity.Query]
) -> tuple[list[Reference], Range]:
    console.print(f"export: torch answers {len(queries)} queries layer by layer")
    model = load_streamed(student, torch.float32)
    found = reference_of(model, processor, queries, max_new_tokens=STREAMED_NEW_TOKENS)
    del model
    return_freed_memory()
    return found


def _stored_type(student: Path) -> torch.dtype:
    stored = AutoConfig.from_pretrained(student).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def compare(expected: Expected, folder: Path, graphs: dict[str, Path]) -> Found:
    """Measure the graphs, and where there are whole answers the build in `folder`."""
    found = graph_parity.compare_graphs(expected.references, graphs)
    answers = None if expected.answers is None else parity.compare(expected.answers, folder)
    return found, answers


def require_same(found: Found, *, where: Path) -> None:
    """Raise a BuildError unless the fp32 graphs are the checkpoint."""
    graph_parity.require_same(found[0], tolerance=parity.LOGITS_TOLERANCE, where=where)
    if found[1] is not None:
        parity.require_equal(found[1], where=where)


def agreement(found: Found) -> float:
    """Share of answer tokens whose likeliest token is torch's: of whole answers, where there are any."""
    graphs, answers = found
    return graphs.forced_top1 if answers is None else answers.forced_top1


def agreement_text(share: float, tokens: int) -> str:
    """The share with Wilson's 95% interval, which says what so few tokens can tell."""
    z = 1.96
    centre = (share + z**2 / (2 * tokens)) / (1 + z**2 / tokens)
    half = z / (1 + z**2 / tokens) * (share * (1 - share) / tokens + z**2 / (4 * tokens**2)) ** 0.5
    low, high = 100 * (centre - half), 100 * (centre + half)
    return f"{100 * share:.1f}% of {tokens} answer tokens (95% interval {low:.1f}% to {high:.1f}%)"


def require_agreement(found: Found, minimum: float, *, where: Path) -> None:
    """The gate that quantized graphs pass.

    Raises:
        BuildError: fewer answer tokens than `minimum` are the checkpoint's.
    """
    share = agreement(found)
    if not share >= minimum:
        tokens = found[0].answer_tokens if found[1] is None else found[1].answer_tokens
        worst = "" if found[1] is None else f" (worst query: {found[1].worst['query']})"
        raise BuildError(
            f"the likeliest token is the checkpoint's for {agreement_text(share, tokens)}, "
            f"asked for are {100 * minimum:g}%{worst}",
            where=where,
            fix="Keep costly weights (--keep-fp16 auto), take more bits, or ask for less (--min-agreement)",
        )


def print_report(report: dict[str, Found]) -> None:
    """A row, or a line, for each precision."""
    whole = {precision: answers for precision, (_, answers) in report.items() if answers is not None}
    if whole:
        parity.print_report(whole)
    for precision, (found, answers) in report.items():
        if answers is None:
            shown = ", ".join(f"{graph} {difference:.1e}" for graph, difference in found.difference.items())
            console.print(
                f"{precision}, {found.queries} queries layer by layer: largest differences {shown}; "
                f"forced top-1 {agreement_text(found.forced_top1, found.answer_tokens)}"
            )


def as_json(report: dict[str, Found], expected: Expected) -> dict[str, Any]:
    """The report by precision, for parity.json."""
    whole = {precision: answers for precision, (_, answers) in report.items() if answers is not None}
    return {
        **parity.as_json(whole),
        "graphs": {precision: asdict(found) for precision, (found, _) in report.items()},
        "largest_activation": asdict(expected.range),
        "torch": "layer by layer" if expected.answers is None else "whole",
    }
