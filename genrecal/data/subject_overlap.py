"""Was a model trained on what a benchmark asks? The training data that its run names, against the questions.

subject -> its run's manifest -> sources -> every sample against every benchmark -> counts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genrecal.core.errors import GenrecalError
from genrecal.core.files import read_json, sha256_file
from genrecal.core.manifest import NAME

EXAMPLES = 5  # pairs that a record names
SKIPPED = "not checked"

Questions = Mapping[
    str, Callable[[], Iterable[Any]]
]  # benchmark -> its questions (bench/images.py), read late


def find_overlap(subject: Path, questions: Questions, *, training: Sequence[Path] = ()) -> dict[str, Any]:
    """Compare the benchmarks with what the subject learnt from.

    Args:
        subject: a student folder, a build, or any other model folder.
        questions: of each benchmark.
        training: data, configs or run folders, where the subject's manifest leads to none.

    Returns: for each benchmark samples, questions and pairs that overlap, by what they have in common; or why
        nothing was compared, under `SKIPPED`.
    """
    if training:
        found: Any = [_data_of_run(path) or path for path in training]
    else:
        run = run_of(subject)
        if run is None:
            return {SKIPPED: "the subject's manifest leads to no training run"}
        found = [_data_of_run(run)]
    try:
        return _compare(found, questions)
    except GenrecalError as error:
        return {SKIPPED: str(error)}


def run_of(subject: Path) -> Path | None:
    """The finished run that a student or build lies in; of a build, the one that its manifest names."""
    folder = subject.resolve()
    kind, manifest = _manifest(folder)
    if kind == "run":
        return folder
    if _manifest(folder.parent)[0] != "run":
        return None
    if kind == "build":
        named = manifest.get("provenance", {}).get("run_manifest")
        return folder.parent if named == sha256_file(folder.parent / NAME) else None
    return folder.parent


def _manifest(folder: Path) -> tuple[str | None, dict[str, Any]]:
    if not (folder / NAME).is_file():
        return None, {}
    content = read_json(folder / NAME)
    return (content.get("kind"), content) if isinstance(content, dict) else (None, {})


def _data_of_run(run: Path) -> dict[str, Any] | None:
    """A run's own description of its data; None where `run` is none."""
    kind, manifest = _manifest(run) if run.is_dir() else (None, {})
    return manifest.get("config", {}).get("data") if kind == "run" else None


def _compare(named: Sequence[Any], questions: Questions) -> dict[str, Any]:
    # Imported here: a build on a device has no run beside it and needs none of this.
    from genrecal.data.exclusion import excluded_ids
    from genrecal.data.fingerprints import with_fingerprints
    from genrecal.data.overlap import TestIndex
    from genrecal.data.source import described_sources, named_sources, read_source, source_rows

    tests = {name: TestIndex(read()) for name, read in questions.items()}
    records: dict[str, dict[str, Any]] = {
        name: {"samples": 0, "questions": 0, "by": {}, "examples": []} for name in tests
    }
    asked: dict[str, set[str]] = {name: set() for name in tests}
    compared = unreadable = 0
    for one in named:
        config = named_sources([one]) if isinstance(one, Path) else described_sources(one)
        for source in config.sources:
            excluded = excluded_ids(config, source)
            for reading, prints in with_fingerprints(read_source(source, source_rows(source)), workers=1):
                if reading.error is not None or isinstance(prints, GenrecalError):
                    unreadable += 1
                    continue
                for sample in reading.samples:
                    if sample.domain in config.exclude_domains or excluded.holds(sample.id):
                        continue
                    compared += 1
                    for name, index in tests.items():
                        match = index.match(sample, prints[: len(sample.images)])
                        if match is None:
                            continue
                        record = records[name]
                        record["samples"] += 1
                        record["by"][match.why] = record["by"].get(match.why, 0) + 1
                        asked[name].add(match.test)
                        if len(record["examples"]) < EXAMPLES:
                            record["examples"].append({"sample": sample.id, "test": match.test})
    for name, record in records.items():
        record |= {"questions": len(asked[name]), "compared": compared, "unreadable": unreadable}
    return records
