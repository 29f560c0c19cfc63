"""Run folders as the figures read them: what distinguishes each, its scores, and its lines of metrics.jsonl.

    RUN/config.yaml, RUN/metrics.jsonl, RUN/points.json, RUN/stages/*/features.safetensors
    RUN/student-bench/           the student after
    STUDENT-bench/ or --baseline the student before

Runs that differ in their seed alone share a name, and are drawn as one with its spread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.report import Report, read_report
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import read_json
from genrecal.figures.naming import name_of, parts_of, tell_apart

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
POINTS = "points.json"
FEATURES = "features.safetensors"
BENCH = "bench.json"


class Missing(GenrecalError):
    """A figure's data is not there: `what` is missing, `fix` says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run."""

    folder: Path
    config: Mapping[str, Any]
    parts: Mapping[str, str]  # method, teacher, student, data and what else differs -> text
    varying: tuple[str, ...]  # the parts in which the runs differ
    several_seeds: bool  # whether the runs have more than one seed between them
    before: Report | None  # the student that it started from
    after: Report | None

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    def name(self) -> str:
        """What distinguishes the run from the others, but for the seed."""
        return name_of(self.parts, self.varying)

    @property
    def title(self) -> str:
        """The name of this run alone, for figures that show every run apart."""
        return f"{self.name()}, seed {self.seed}" if self.several_seeds else self.name()


def open_runs(folders: Sequence[Path], baselines: Sequence[Path] = ()) -> tuple[Run, ...]:
    """Read the configs and scores of runs.

    Args:
        folders: run folders, finished or not.
        baselines: bench folders of students as they were; a run takes the one of its student's name.

    Raises:
        ConfigError: a folder holds no run.
        BenchError: a bench report cannot be read.
    """
    configs = {folder: _config(folder) for folder in dict.fromkeys(folders)}
    reports = [(path, read_report(path)) for path in baselines]
    runs = [
        Run(
            folder=folder,
            config=config,
            parts=parts_of(config),
            varying=(),
            several_seeds=len({one.get("seed", 0) for one in configs.values()}) > 1,
            before=_before(config, reports, alone=len({one["student"] for one in configs.values()}) == 1),
            after=_report(folder / "student-bench"),
        )
        for folder, config in configs.items()
    ]
    return tell_apart(runs)


def metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that is still being written is left out."""
    path = run.folder / METRICS
    if not path.is_file():
        raise Missing(f"{run.folder} has no {METRICS}", fix="`genrecal distill` writes it")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def read_points(run: Run) -> list[dict[str, Any]]:
    """The records of points.json: stage, number, percent, step, scores, questions."""
    path = run.folder / POINTS
    if not path.is_file():
        raise Missing(
            f"{run.folder} has no {POINTS}",
            fix="Give the run's config `evaluate: {sets: {mmb: FILE}}` and train",
        )
    return list(read_json(path))


def stage_folders(run: Run) -> list[Path]:
    """RUN/stages/1-..., in their order."""
    found = [path for path in run.folder.glob("stages/*-*") if path.is_dir() and path.name[0].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[0]))


def title_of(reports: Sequence[Report]) -> dict[str, str]:
    """Set name -> the title that its scores are shown with."""
    return {name: result.score.title for report in reports for name, result in report.results.items()}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"is no run: it has no {CONFIG}", where=folder)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"is not valid YAML ({' '.join(str(error).split())})", where=path) from None
    if not isinstance(content, dict) or not {"method", "student"} <= content.keys():
        raise ConfigError("is not the config of a run", where=path)
    return content


def _before(config: Mapping[str, Any], given: list[tuple[Path, Report]], *, alone: bool) -> Report | None:
    student = Path(config["student"])
    named = [report for _, report in given if Path(str(report.spec.get("path", ""))).name == student.name]
    if named:
        return named[0]
    if given and alone and len(given) == 1:
        return given[0][1]
    return _report(student.parent / f"{student.name}-bench")


def _report(folder: Path) -> Report | None:
    return read_report(folder) if (folder / BENCH).is_file() else None
