"""How good is the student on the way? It is scored at every 20% of each stage (paper, Figure 10).

    RUN/points/2-distill-40/snapshot/   the student, kept by snapshots.py; gone once it is scored
    RUN/points/2-distill-40/            what `genrecal bench` leaves: answers/, bench.json, bench.md
    RUN/points.json                     a record for each point, in their order

Training only keeps snapshots. They are scored when all stages are done, by rank 0 alone and in a process of
its own: no rank waits in a collective meanwhile, the models of training are out of memory, and training never
imports the bench. A run that was killed keeps what it had and scores the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from genrecal.core.config import Config
from genrecal.core.console import console
from genrecal.core.errors import ConfigError, TrainError
from genrecal.core.files import read_json, write_json
from genrecal.core.manifest import NAME

RESULTS = "points.json"
FOLDER = "points"
OPTIONS = {"mmb": "--mmb", "mmmu": "--mmmu", "mmvet": "--mm-vet"}
# A launcher's variables would make the scoring process one of its ranks.
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class EvaluateConfig(Config):
    """Scores of the student on the way."""

    every: float = Field(default=0.2, ge=0.01, le=1)
    """Part of a stage between two points (paper: 0.2)."""
    sets: dict[Literal["mmb", "mmmu", "mmvet"], Path] = Field(min_length=1)
    """Test sets by name, as `genrecal bench` takes them."""
    batch_size: int = Field(default=16, ge=1)
    """Questions at a time."""
    limit: int | None = Field(default=None, ge=1)
    """Questions of each set, evenly spaced; default: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place on a run's way."""

    number: int  # of the stage, from 1
    stage: str
    percent: int  # of the stage
    step: int  # optimizer steps of the stage that are done

    @property
    def name(self) -> str:
        return f"{self.number}-{self.stage}-{self.percent}"

    def snapshot(self, run_folder: Path) -> Path:
        """Where the student is kept until it is scored."""
        return run_folder / FOLDER / self.name / "snapshot"


def snapshot_steps(steps: int, every: float) -> dict[int, int]:
    """After which steps of a stage its student is scored, and which percentage each stands for.

    The last step is always among them, as 100%. Where a stage has fewer steps than points, several would
    fall on one step; it then stands for the one that is nearest to what is done.
    """
    shares = [place * every for place in range(1, int(1 / every + 1e-9) + 1)]
    places: dict[int, int] = {}
    for share in [*(share for share in shares if share < 1 - 1e-9), 1.0]:
        step, percent = max(1, round(share * steps)), round(100 * share)
        done = 100 * step / steps
        if step not in places or abs(percent - done) <= abs(places[step] - done):
            places[step] = percent
    return places


def stage_points(number: int, stage: str, *, steps: int, settings: EvaluateConfig | None) -> dict[int, Point]:
    """The points of a stage by the steps that are done there; none without `settings`.

    Args:
        number: of the stage, from 1.
        stage: its name.
        steps: its optimizer steps.
        settings: the config's `evaluate`.
    """
    places = snapshot_steps(steps, settings.every) if settings else {}
    return {
        step: Point(number=number, stage=stage, percent=percent, step=step)
        for step, percent in places.items()
    }


def require_sets(settings: EvaluateConfig) -> None:
    """Raise a ConfigError where a test set is missing: better before training than after it."""
    for name, path in settings.sets.items():
        if not path.exists():
            raise ConfigError("no such test set", where=f"evaluate.sets.{name}: {path}")


def evaluate_points(
    run_folder: Path,
    settings: EvaluateConfig,
    *,
    stages: Sequence[tuple[str, bool]],
    student: Path,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Score every point that has no score yet and write RUN/points.json; returns all records.

    Called by rank 0 alone, when every stage is finished. A stage that does not train the student gets the
    score of the student that it found for all its points, marked `unchanged`.

    Args:
        run_folder: RUN, with all its stages.
        settings: the config's `evaluate`.
        stages: the run's stages in order: name, and whether it trains the student.
        student: the folder of the student that the run started from.
        device: as `genrecal bench` takes it.

    Raises:
        TrainError: a student could not be scored; the points scored so far are kept.
    """
    records = read_points(run_folder)
    for number, (stage, trains) in enumerate(stages, start=1):
        folder = run_folder / "stages" / f"{number}-{stage}"
        found: dict[str, Any] | None = None  # the scores of a student that stays as it is
        steps = int(read_json(folder / NAME)["steps"])
        for point in stage_points(number, stage, steps=steps, settings=settings).values():
            output, snapshot = run_folder / FOLDER / point.name, point.snapshot(run_folder)
            if not is_scored(records, point):
                if not trains:
                    start = run_folder / FOLDER / f"{number}-{stage}-0"
                    found = found or _score(student, start, settings, device)
                    scores = found
                elif point.percent == 100:
                    scores = _score(folder / "student", output, settings, device)
                elif (snapshot / "student").is_dir():
                    scores = _score(snapshot / "student", output, settings, device)
                else:
                    console.print(f"{point.name}: the student was not kept there, no score")
                    continue
                records.append(
                    {"stage": stage, "number": number, "percent": point.percent, "step": point.step}
                    | {**scores, "unchanged": not trains}
                )
                records.sort(key=lambda one: (one["number"], one["percent"]))
                write_json(run_folder / RESULTS, records)
                console.print(f"{point.name}: {_line(scores)}")
            for kept in (snapshot, *output.glob(".*")):  # hidden: what a kill left of one being written
                shutil.rmtree(kept, ignore_errors=True)
        if (folder / "student").is_dir():
            student = folder / "student"
    return records


def read_points(run_folder: Path) -> list[dict[str, Any]]:
    """The records of RUN/points.json; none where it is not there.

    A record: stage, number, percent, step, scores (set -> 0..1; null: incomplete), questions (set -> count),
    unchanged.
    """
    path = run_folder / RESULTS
    return read_json(path) if path.is_file() else []


def is_scored(records: Sequence[dict[str, Any]], point: Point) -> bool:
    return any((one["number"], one["percent"]) == (point.number, point.percent) for one in records)


def _score(subject: Path, output: Path, settings: EvaluateConfig, device: str) -> dict[str, Any]:
    """`genrecal bench` on a folder; its answers are resumed where a kill cut them short."""
    command = [sys.executable, "-m", "cli", "bench", str(subject), "--output", str(output)]
    for name, path in settings.sets.items():
        command += [OPTIONS[name], str(path)]
    command += ["--batch-size", str(settings.batch_size), "--device", device, "--timed", "0", "--no-overlap"]
    if settings.limit is not None:
        command += ["--limit", str(settings.limit)]
    variables = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    # `cli` lies beside the package, in a checkout as where it is installed.
    beside = str(Path(__file__).resolve().parents[2])
    paths = [beside, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        env=variables | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise TrainError(
            f"the student could not be scored ({lines[-1].removeprefix('error: ')})",
            where=output,
            fix="The stages are finished and kept; the same command goes on here",
        )
    results = read_json(output / "bench.json")["results"]
    return {
        "scores": {name: result["score"]["score"] for name, result in results.items()},
        "questions": {name: result["score"]["n"] for name, result in results.items()},
    }


def _line(scores: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} incomplete" if score is None else f"{name} {100 * score:.1f}% of {scores['questions'][name]}"
        for name, score in scores["scores"].items()
    )
