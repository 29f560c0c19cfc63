"""What runs are called: by that in which they differ. Runs that differ in their seed alone share a name.

A model or a file is called by its path's last name, and where others have that name too, by its folders, too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrecal.figures.runs import Run

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
# Runs that differ in more settings are told apart by their folders.
MOST_SETTINGS = 2
NO_TEACHER = "no teacher"
# What tells runs apart, beside the path, of a source and of one of several teachers; and its default.
SOURCE_DEFAULTS = {"domain": None, "weight": 1.0, "turns": "last", "exclude_ids": None}
TEACHER_DEFAULTS = {"weight": 1.0, "domains": None}
# teacher | student | source -> its path, without the seed -> what it is called
ShortNames = Mapping[str, Mapping[str, str]]
DOMAIN_NAMES = {
    "general_vqa": "general VQA",
    "knowledge": "knowledge",
    "science_math": "science & math",
    "chart_document": "chart & document",
}


def parts_of(config: Mapping[str, Any], short: ShortNames) -> dict[str, str]:
    """A run's method, teacher, student and data as texts.

    Args:
        config: of the run.
        short: what `short_names` gave for this run and those beside it.
    """
    teachers = [config["teacher"]] if config.get("teacher") else config.get("teachers") or []
    paths = [one["path"] if isinstance(one, dict) else one for one in teachers]
    excluded = (config.get("data") or {}).get("exclude_domains") or ()
    names = [DOMAIN_NAMES.get(domain, domain) for domain in excluded]
    return {
        "method": str(config["method"]) + (" (answers only)" if config.get("answer_only") else ""),
        "teacher": " + ".join(short["teacher"][seedless(path, config)] for path in paths) or NO_TEACHER,
        "student": short["student"][seedless(config["student"], config)],
        "data": "without " + " and ".join(names) if names else "all data",
    }


def short_names(configs: Iterable[Mapping[str, Any]]) -> ShortNames:
    """What the runs' teachers, students and sources are called, each kind apart from the others."""
    paths: dict[str, list[str]] = {"teacher": [], "student": [], "source": []}
    for config in configs:
        found = {
            "teacher": [config.get("teacher"), *(config.get("teachers") or ())],
            "student": [config["student"]],
            "source": (config.get("data") or {}).get("sources") or [],
        }
        for kind, named in found.items():
            given = [one["path"] if isinstance(one, Mapping) else one for one in named if one]
            paths[kind] += [seedless(path, config) for path in given]
    return {kind: _shortest(of_kind) for kind, of_kind in paths.items()}


def seedless(path: str, config: Mapping[str, Any]) -> str:
    """The whole path with a star for the run's own seed: what lies in seed-0/ for seed 0 and in seed-1/ for
    seed 1 was made for that seed, as `genrecal demo` makes it, and does not tell runs apart.
    """
    return re.sub(rf"(seed[-_]?){config.get('seed', 0)}(?!\d)", r"\1*", os.path.abspath(path))


def name_of(parts: Mapping[str, str], chosen: Sequence[str]) -> str:
    """The chosen parts as one text; the method where they say nothing."""
    return ", ".join(parts[one] for one in chosen if parts[one] != NO_TEACHER) or parts["method"]


def tell_apart(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs with as many parts as tell them apart; the seed is none."""
    parts = list(runs[0].parts) if runs else []
    # A method without a teacher does not make the teacher of the others worth naming.
    varying = [part for part in parts if len({run.parts[part] for run in runs} - {NO_TEACHER}) > 1]
    runs = [replace(run, varying=tuple(varying)) for run in runs]
    short = short_names([run.config for run in runs])
    settings = [_leaves(run.config) | _of_lists(run.config, short) for run in runs]
    # Runs of one name that differ in a setting: the setting joins the name.
    keys = {
        key
        for first in range(len(runs))
        for other in range(first)
        if runs[first].name() == runs[other].name()
        for key in settings[first].keys() | settings[other].keys()
        if settings[first].get(key) != settings[other].get(key)
    }
    if 0 < len(keys) <= MOST_SETTINGS:
        text = [
            ", ".join(f"{'.'.join(key.split('.')[-2:])}={one.get(key)}" for key in sorted(keys))
            for one in settings
        ]
        runs = [
            replace(run, parts={**run.parts, "settings": extra}, varying=(*run.varying, "settings"))
            for run, extra in zip(runs, text, strict=True)
        ]
    # Runs of one name and one seed are no seeds of each other, nor are those that differ in many settings.
    seen: dict[tuple[str, int], int] = {}
    for run in runs:
        seen[run.name(), run.seed] = seen.get((run.name(), run.seed), 0) + 1
    if len(keys) > MOST_SETTINGS or any(count > 1 for count in seen.values()):
        folders = {run.folder: os.path.abspath(run.folder) for run in runs}
        called = _shortest(folders.values())
        runs = [
            replace(
                run,
                parts={**run.parts, "folder": called[folders[run.folder]]},
                varying=(*run.varying, "folder"),
            )
            for run in runs
        ]
    return tuple(runs)


def names(runs: Sequence[Run], *, without: Sequence[str] = ()) -> dict[Path, str]:
    """What distinguishes these runs from each other, by folder, but for the parts `without` and the seed."""
    differ = [part for part in runs[0].varying if len({run.parts[part] for run in runs}) > 1] if runs else []
    return {run.folder: name_of(run.parts, [part for part in differ if part not in without]) for run in runs}


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


def _of_lists(config: Mapping[str, Any], short: ShortNames) -> dict[str, str]:
    """What the config says about its sources and, where it has several, its teachers."""
    lists = {
        "data.sources": ((config.get("data") or {}).get("sources"), "source", SOURCE_DEFAULTS),
        "teachers": (config.get("teachers"), "teacher", TEACHER_DEFAULTS),
    }
    found = {}
    for place, (entries, kind, defaults) in lists.items():
        texts = []
        for one in entries or ():
            name, options = short[kind][seedless(one["path"], config)], _options(one, defaults)
            texts.append(f"{name} ({', '.join(options)})" if options else name)
        if texts:
            found[place] = " + ".join(texts)
    return found


def _options(entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """`weight 2.0`: what is not the default; of a file of ids its name."""
    given = {key: entry.get(key, default) for key, default in defaults.items()}
    return [
        f"{key} {Path(value).name if key == 'exclude_ids' else value}"
        for key, value in given.items()
        if value != defaults[key]
    ]


def _shortest(paths: Iterable[str]) -> dict[str, str]:
    """Absolute path -> its last name, with as many of its folders as tell it from the other paths."""
    parts = {path: Path(path).parts for path in paths}
    names = {}
    for path, own in parts.items():
        others = [other for other in parts.values() if other != own]
        length = next(
            (count for count in range(1, len(own)) if all(one[-count:] != own[-count:] for one in others)),
            len(own),
        )
        names[path] = "/".join(own[-length:])
    return names
