"""The student as it is in the middle of a stage, kept for `points.py` to score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch import nn

from genrecal.train.engine import sum_over_ranks
from genrecal.train.points import Point, is_scored, read_points


def save_point(run_folder: Path, point: Point, *, student: nn.Module, save: Callable[..., None]) -> None:
    """Keep the student as it is now, LoRA merged. Called by every rank, as gathering needs them all.

    Nothing is written for a point that the run kept or scored before it was killed, for a stage that does not
    train the student, and at 100%, as the stage itself leaves that student.

    Args:
        run_folder: RUN.
        point: where the run is.
        student: in training.
        save: `save_stage` with all that it takes but folder, facts and features.
    """
    if point.percent == 100 or not any(parameter.requires_grad for parameter in student.parameters()):
        return
    target = point.snapshot(run_folder)
    # Rank 0 looks and all follow: on a shared disk two ranks may see different things.
    there = dist.get_rank() == 0 and (target.exists() or is_scored(read_points(run_folder), point))
    if sum_over_ranks({"there": float(there)})["there"]:
        return
    save(
        target,
        facts={"stage": point.stage, "steps": point.step, "percent": point.percent},
        features={},
    )
