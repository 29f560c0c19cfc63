"""The student as it is in the middle of a stage, kept for `points.py` to score."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from genrecal.data.batch import Batch
from genrecal.train.artifacts import save_stage
from genrecal.train.engine import sum_over_ranks
from genrecal.train.points import Point, is_scored, read_points
from genrecal.train.setup import StageModels


def save_point(
    run_folder: Path,
    point: Point,
    models: StageModels,
    *,
    student_folder: Path,
    probe: Batch,
    precision: str,
) -> None:
    """Keep the student as it is now, LoRA merged. Called by every rank, as gathering needs them all.

    Nothing is written for a point that the run kept or scored before it was killed, for a stage that does not
    train the student, and at 100%, as the stage itself leaves that student.

    Args:
        run_folder: RUN.
        point: where the run is.
        models: the stage's models, in training.
        student_folder, probe, precision: as `save_stage` takes them.
    """
    trained = any(parameter.requires_grad for parameter in models.objective.student.parameters())
    if not trained or point.percent == 100:
        return
    target = point.snapshot(run_folder)
    # Rank 0 looks and all follow: on a shared disk two ranks may see different things.
    there = dist.get_rank() == 0 and (target.exists() or is_scored(read_points(run_folder), point))
    if sum_over_ranks({"there": float(there)})["there"]:
        return
    save_stage(
        models,
        target,
        student_folder=student_folder,
        probe=probe,
        precision=precision,
        facts={"stage": point.stage, "steps": point.step, "percent": point.percent},
        features={},
    )
