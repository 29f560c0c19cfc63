"""Run folders as the figures read them: what distinguishes each, its scores, and its lines of metrics.jsonl.

    RUN/config.yaml, RUN/metrics.jsonl, RUN/points.json, RUN/stages/*/features.safetensors
    RUN/student-bench/           the student after
    STUDENT-bench/ or --baseline the student before

Runs that differ in their seed alone share a name, and are drawn as one with its spread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from bench.report import Report, read_report
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import read_json
from genrecal.figures.naming import name_of, parts_of, short_names, tell_apart

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
POINTS = "points.json"
FEATURES = "features.safetensors"
BENCH = "bench.json"

Value = TypeVar("Value")


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
        baselines: bench folders of students as they were; a run takes the one of its student's path, or of
            its name where the student was benched elsewhere.

    Raises:
        ConfigError: a folder holds no run, or baselines do not say which student they are of.
        BenchError: a bench report cannot be read.
    """
    configs = {folder: _config(folder) for folder in dict.fromkeys(folders)}
    short = short_names(configs.values())
    before = _befores([Path(one["student"]) for one in configs.values()], baselines)
    runs = [
        Run(
            folder=folder,
            config=config,
            parts=parts_of(config, short),
            varying=(),
            several_seeds=len({one.get("seed", 0) for one in configs.values()}) > 1,
            before=before[Path(config["student"])],
            after=_report(folder / "student-bench"),
        )
        for folder, config in configs.items()
    ]
    return tell_apart(runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfRuns(Generic[Value]):
    """What a figure read from each run that has it."""

    values: dict[Path, Value]  # by run folder
    runs: tuple[Run, ...]
    left_out: str  # a sentence for the caption about runs that lack it; empty: there are none


def read_each(runs: Sequence[Run], read: Callable[[Run], Value | None]) -> OfRuns[Value]:
    """Read every run, so that one that is not finished does not keep the others from being shown.

    Args:
        runs: what `open_runs` gave.
        read: raises Missing where a run's data is not there; None: the run's method has nothing of the kind.

    Raises:
        Missing: no run has the data, and this is the first one's reason.
    """
    values: dict[Path, Value] = {}
    lacking: list[Missing] = []
    for run in runs:
        try:
            value = read(run)
        except Missing as error:
            lacking.append(error)
            continue
        if value is not None:
            values[run.folder] = value
    if lacking and not values:
        raise lacking[0]
    return OfRuns(
        values=values,
        runs=tuple(run for run in runs if run.folder in values),
        left_out=f" Left out: {'; '.join(error.what for error in lacking)}." if lacking else "",
    )


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


def _befores(students: Sequence[Path], baselines: Sequence[Path]) -> dict[Path, Report | None]:
    """Student -> its bench: the given one of its path, else of its name, else the one beside it."""
    given = {folder: read_report(folder) for folder in dict.fromkeys(baselines)}
    benched = {folder: _subject(report) for folder, report in given.items()}
    real = {student: student.resolve() for student in dict.fromkeys(students)}
    # A bench of one of the students by its path is not another's by its name.
    elsewhere = {folder: path for folder, path in benched.items() if path not in real.values()}
    found: dict[Path, Report | None] = {}
    for student, path in real.items():
        mine = [folder for folder, subject in benched.items() if subject == path]
        namesakes = {one for one in real.values() if one.name == path.name}
        if not mine:
            mine = [folder for folder, subject in elsewhere.items() if subject and subject.name == path.name]
            if mine and len(namesakes) > 1:
                raise ConfigError(
                    f"is of a student '{path.name}' elsewhere, and the runs have several of that name",
                    where=mine[0],
                    fix=f"Bench {' and '.join(map(str, sorted(namesakes)))}",
                )
        if len(mine) > 1:
            raise ConfigError(
                f"and {mine[1]} are both of a student '{path.name}'",
                where=mine[0],
                fix=f"Give --baseline for {student} once",
            )
        if not mine and len(set(real.values())) == len(given) == 1:
            mine = list(given)  # one student under whatever name
        beside = student.parent / f"{student.name}-bench"
        found[student] = given[mine[0]] if mine else _report(beside)
    return found


def _subject(report: Report) -> Path | None:
    """The folder that was benched; None: an endpoint."""
    path = report.spec.get("path")
    return None if path is None else Path(str(path)).resolve()


def _report(folder: Path) -> Report | None:
    return read_report(folder) if (folder / BENCH).is_file() else None
