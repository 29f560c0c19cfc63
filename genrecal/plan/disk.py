"""What a run writes: checkpoints within a stage, what finished stages leave, a cache of teacher features."""

from __future__ import annotations

from dataclasses import dataclass

from genrecal.plan.memory import FP32, weight_bytes
from genrecal.plan.parameters import Parameters
from genrecal.plan.workload import Batches
from genrecal.train.settings import RunConfig

BF16 = 2
# data/features.py: one byte a number, and an fp16 scale for every 64.
INT8 = 1 + 2 / 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes."""

    checkpoints: float
    """All that are kept at a time, and the one that is being written."""
    stage: float
    """What the finished stage leaves."""
    cache: dict[str, float]
    """Teacher features of all samples, by what is kept and how; empty where the stage reads no teacher."""


def disk_of(
    config: RunConfig, parameters: Parameters, batches: Batches, *, samples: int, widths: list[int]
) -> Disk:
    """The disk of one stage.

    Args:
        config: the run.
        parameters: of the stage.
        batches: its micro-batches.
        samples: of an epoch.
        widths: hidden sizes of the teachers.
    """
    weight = weight_bytes(config.engine)
    # The fp32 master weights and AdamW's two moments of what is trained, nothing else (train/checkpoint.py).
    checkpoint = parameters.trained_total * 3 * FP32
    both = (parameters.trained, parameters.frozen)
    student = sum(
        count
        for counts in both
        for part, count in counts.items()
        if part.startswith("student") and "LoRA" not in part
    )
    writes_student = any(part.startswith("student") for part in parameters.trained)
    left = parameters.trained.get("student LoRA", 0) + sum(one.get("Recalibrator", 0) for one in both)
    cache: dict[str, float] = {}
    if widths:
        _, tokens, answer = batches.tokens()
        depths = len(config.recalibrator.layers)
        # The last question position predicts the first answer token.
        for name, positions in (("answers", answer + 1), ("answers and questions", tokens)):
            numbers = samples * positions * depths * sum(widths)
            cache |= {f"{name}, bf16": numbers * BF16, f"{name}, int8": numbers * INT8}
    return Disk(
        checkpoints=checkpoint * (config.engine.keep_checkpoints + 1),
        stage=weight * (left + (student if writes_student else 0)),
        cache=cache,
    )
