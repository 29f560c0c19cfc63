"""Run folders as the figures read them: what distinguishes each, its scores, and its lines of metrics.jsonl.

    RUN/config.yaml, RUN/metrics.jsonl, RUN/points.json, RUN/stages/*/features.safetensors
    RUN/student-bench/           the student after
    STUDENT-bench/ or --baseline the student before

Runs that differ in their seed alone share a name, and are drawn as one with its spread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bench.report import Report, read_report
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import read_json

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
POINTS = "points.json"
FEATURES = "features.safetensors"
BENCH = "bench.json"
# Settings that may differ between runs that a figure compares, without being what it compares.
ASIDE = (
    "output",
    "seed",
    "engine",
    "track",
    "track_project",
    "evaluate",
    "data.cache",
    "data.workers",
    "relabel",
)
NO_TEACHER = "no teacher"
DOMAIN_NAMES = {
    "general_vqa": "general VQA",
    "knowledge": "knowledge",
    "science_math": "science & math",
    "chart_document": "chart & document",
}


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
        return _name(self.parts, self.varying)

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
            parts=_parts(config),
            varying=(),
            several_seeds=len({one.get("seed", 0) for one in configs.values()}) > 1,
            before=_before(config, reports, alone=len({one["student"] for one in configs.values()}) == 1),
            after=_report(folder / "student-bench"),
        )
        for folder, config in configs.items()
    ]
    return _told_apart(runs)


def names(runs: Sequence[Run], *, without: Sequence[str] = ()) -> dict[Path, str]:
    """What distinguishes these runs from each other, by folder, but for the parts `without` and the seed."""
    differ = [part for part in runs[0].varying if len({run.parts[part] for run in runs}) > 1] if runs else []
    return {run.folder: _name(run.parts, [part for part in differ if part not in without]) for run in runs}


def first_seeds(runs: Sequence[Run]) -> list[Run]:
    """Of runs that differ in their seed alone the first."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.name(), run)
    return list(first.values())


def side_by_side(runs: Sequence[Run]) -> tuple[list[Run], int | None]:
    """The runs with those of one seed beside each other, and how many of them make a row.

    The count is None where there is one seed, or where not every name has every seed.
    """
    names = list(dict.fromkeys(run.name() for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    ordered = sorted(runs, key=lambda run: (seeds.index(run.seed), names.index(run.name())))
    whole = len(seeds) > 1 and len(names) > 1 and len(runs) == len(names) * len(seeds)
    return ordered, len(names) if whole else None


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


def _name(parts: Mapping[str, str], chosen: Sequence[str]) -> str:
    return ", ".join(parts[one] for one in chosen if parts[one] != NO_TEACHER) or parts["method"]


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


def _parts(config: Mapping[str, Any]) -> dict[str, str]:
    teachers = [config["teacher"]] if config.get("teacher") else config.get("teachers") or []
    paths = [one["path"] if isinstance(one, dict) else one for one in teachers]
    excluded = (config.get("data") or {}).get("exclude_domains") or ()
    names = [DOMAIN_NAMES.get(domain, domain) for domain in excluded]
    return {
        "method": str(config["method"]) + (" (answers only)" if config.get("answer_only") else ""),
        "teacher": " + ".join(Path(path).name for path in paths) or NO_TEACHER,
        "student": Path(config["student"]).name,
        "data": "without " + " and ".join(names) if names else "all data",
    }


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


def _told_apart(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs with as many parts as tell them apart; the seed is none."""
    parts = list(runs[0].parts) if runs else []
    # A method without a teacher does not make the teacher of the others worth naming.
    varying = [part for part in parts if len({run.parts[part] for run in runs} - {NO_TEACHER}) > 1]
    runs = [replace(run, varying=tuple(varying)) for run in runs]
    settings = [_leaves(run.config) for run in runs]
    # Runs of one name that differ in a setting: the setting joins the name.
    keys = {
        key
        for first in range(len(runs))
        for other in range(first)
        if runs[first].name() == runs[other].name()
        for key in settings[first].keys() | settings[other].keys()
        if settings[first].get(key) != settings[other].get(key)
    }
    if keys:
        text = [", ".join(f"{key.split('.')[-1]}={one.get(key)}" for key in sorted(keys)) for one in settings]
        runs = [
            replace(run, parts={**run.parts, "settings": extra}, varying=(*run.varying, "settings"))
            for run, extra in zip(runs, text, strict=True)
        ]
    # Runs of one name and one seed are no seeds of each other.
    seen: dict[tuple[str, int], int] = {}
    for run in runs:
        seen[run.name(), run.seed] = seen.get((run.name(), run.seed), 0) + 1
    if any(count > 1 for count in seen.values()):
        runs = [
            replace(run, parts={**run.parts, "folder": run.folder.name}, varying=(*run.varying, "folder"))
            for run in runs
        ]
    return tuple(runs)


def _leaves(node: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """The config's leaves as text by path, without paths of files and what is put aside."""
    found: dict[str, str] = {}
    for key, value in node.items():
        place = f"{path}{key}"
        if place in ASIDE or place in (
            "teacher",
            "teachers",
            "student",
            "data.sources",
            "data.exclude_domains",
        ):
            continue
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{place}.")
        else:
            found[place] = json.dumps(value, default=str).strip('"')
    return found
