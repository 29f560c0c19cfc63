"""Algorithms 1 and 2 with the options that the project adds, in float64, one sample at a time.

As reference.py, which has the paper's own form; every option here is written out from its description in
RecalibratorConfig and ObjectiveConfig. Shapes: A tokens of the teacher's answer, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.train.reference import (
    Sides,
    Tensor,
    cross_entropy,
    divergence,
    head,
    linear,
    recalibrate,
    residual,
    vlm_body,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What differs from the paper's form."""

    answer_input: str = "features"
    aligned: Sequence[int] | None = (
        None  # for each of the teacher's answer tokens a place in the student's, or -1
    )
    delay: int = 0
    hidden: Collection[int] = ()  # places of the teacher's answer
    first_token: bool = True
    blocks: Sequence[tuple[int | None, int | None]] = (
        (None, None),
    )  # student's and teacher's; None: all, normed


def recalibrated(
    *,
    student64: Any,
    teacher64: Any,
    recalibrators: Sequence[Any],
    student: Sides,
    teacher: Sides,
    options: Options,
) -> dict[str, Tensor]:
    """ar, kl, reg_ar and reg_kl of one sample, summed over its targets, the mean over the depths."""
    start, count = len(teacher.question) - 1, len(teacher.answer)
    with torch.no_grad():
        target = head(teacher64, vlm_body(teacher64, teacher))[start : start + count]
    kept = slice(0 if options.first_token else 1, count)
    terms = {"ar": torch.tensor(0.0).double()}
    terms |= {name: terms["ar"] for name in ("kl", "reg_ar", "reg_kl")}
    for recalibrator, (blocks_s, blocks_l) in zip(recalibrators, options.blocks, strict=True):
        z_s = features(student64, student, blocks_s)
        with torch.no_grad():
            z_l = features(teacher64, teacher, blocks_l)
            suffix = answer_rows(teacher64, teacher, z_l, options)
        suffix = linear(suffix, recalibrator.rec_proj_pre)
        main = suffix
        if options.aligned is not None:
            rows = [
                z_s[len(student.question) + place] if place >= 0 else 0 * z_s[0] for place in options.aligned
            ]
            main = suffix + torch.stack(rows)
        own = recalibrator.rec_proj_question or recalibrator.rec_proj_pre
        for mark, question, answer in (
            ("", z_s[: len(student.question)], main),
            ("reg_", linear(z_l[: len(teacher.question)], own), suffix),
        ):
            r = recalibrate(recalibrator, torch.cat([question, answer]))[len(question) - 1 :][:count]
            logits = head(teacher64, r)
            for name, value in (
                ("ar", cross_entropy(logits, teacher.answer)),
                ("kl", divergence(target, logits)),
            ):
                terms[mark + name] = terms[mark + name] + value[kept].sum() / len(recalibrators)
    return terms


def features(model64: Any, sides: Sides, blocks: int | None) -> Tensor:
    return vlm_body(model64, sides) if blocks is None else residual(model64, sides, blocks)


def answer_rows(teacher64: Any, teacher: Sides, z_l: Tensor, options: Options) -> Tensor:
    """The teacher's side of the answer before rec_proj_pre, [A, D]: delayed, then hidden."""
    if options.answer_input == "features":
        rows = z_l[len(teacher.question) :]
    else:
        rows = teacher64.get_input_embeddings().weight[torch.tensor(teacher.answer)]
    zero = torch.zeros_like(rows[0])
    delayed = [rows[n - options.delay] if n >= options.delay else zero for n in range(len(rows))]
    return torch.stack([zero if n in options.hidden else row for n, row in enumerate(delayed)])
