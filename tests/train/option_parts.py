"""An objective with Recalibrators of any shape, and what the float64 reference says of it."""

from __future__ import annotations

from typing import Any

import torch

from genrecal.data.pair import PairedSample
from genrecal.models.recalibrator import Recalibrator, RecalibratorConfig
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from tests.train import reference_options as reference
from tests.train.algorithm_parts import Parts, enliven, sides

TERMS = ("ar", "kl", "reg_ar", "reg_kl")


def recalibrators(parts: Parts, config: RecalibratorConfig, *, seed: int = 5) -> list[Recalibrator]:
    made = []
    for depth in range(len(config.layers)):
        torch.manual_seed(seed + depth)
        one = Recalibrator(
            config,
            student_body=parts.student.get_decoder(),
            teacher_width=parts.teacher.config.get_text_config().hidden_size,
        )
        enliven(one, seed + depth)
        made.append(one)
    return made


def objective(
    parts: Parts,
    made: list[Recalibrator],
    *,
    losses: tuple[str, ...] = ("align", "regularize", "sft"),
    **options: Any,
) -> Objective:
    """`options` are keys of RecalibratorConfig, and `first_token`."""
    first_token = options.pop("first_token", True)
    source = Source(parts.teacher, made, config=RecalibratorConfig(**options), first_token=first_token)
    return Objective(student=parts.student, sources=[source], losses=losses).eval()


def expected(
    parts: Parts, made: list[Recalibrator], row: PairedSample, options: reference.Options
) -> dict[str, torch.Tensor]:
    return reference.recalibrated(
        student64=parts.student64,
        teacher64=parts.teacher64,
        recalibrators=made,
        student=sides(row.student),
        teacher=sides(row.teachers[0]),
        options=options,
    )
