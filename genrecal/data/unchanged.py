"""Is a run's data still what it started with? Which sample comes when depends on all that there are.

    RUN/data.json    of each source how many samples, and the digest of its table; the exclusion files; and
                     the digest of which samples of all are in the mixture

Tables have their digests from when they were built, so that millions of samples are compared at once. Files
that were only touched, and tables that were built again, have the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError
from genrecal.core.files import read_json, sha256_bytes, sha256_file, write_json
from genrecal.data.exclusion import exclusion_files
from genrecal.data.mixture import Mixture
from genrecal.data.source import MixtureConfig

NAME = "data.json"


def note_data(run: Path, mixture: Mixture, config: MixtureConfig) -> None:
    """Write down what the run starts with; one that was started keeps what it has."""
    if not (run / NAME).is_file():
        write_json(run / NAME, _described(mixture, config))


def require_same_data(run: Path, mixture: Mixture, config: MixtureConfig) -> None:
    """Compare `mixture` with what the run in the folder `run` started with, if that is written down.

    Raises:
        DataError: it is another; the source or the exclusion file that changed is named.
    """
    if not (run / NAME).is_file():
        return
    before, now = read_json(run / NAME), _described(mixture, config)
    for was, is_ in zip(before["sources"], now["sources"], strict=True):
        if was["digest"] != is_["digest"]:
            raise _changed(run, is_["path"], "holds", was["samples"], is_["samples"])
    if before["digest"] != now["digest"]:
        files = now["exclude_ids"]
        changed = [name for name in files if files[name] != before["exclude_ids"].get(name)]
        where = changed[0] if changed else "data"
        raise _changed(run, where, "leaves", before["samples"], now["samples"])


def _changed(run: Path, where: str, verb: str, before: int, now: int) -> DataError:
    return DataError(
        f"has changed since the run started: then it {verb} {before:,} samples, now {now:,}"
        if before != now
        else f"has changed since the run started: it {verb} {now:,} samples, but other ones",
        where=where,
        fix=f"Put it back as it was, or give another output folder: {run} would skip and repeat samples",
    )


def _described(mixture: Mixture, config: MixtureConfig) -> dict[str, Any]:
    files = {path for source in config.sources for path in exclusion_files(config, source)}
    return {
        "samples": len(mixture),
        "digest": sha256_bytes(mixture.places.astype("<i8").tobytes()),
        "sources": [
            {"path": table.source.name, "samples": len(table), "digest": table.digest}
            for table in mixture.tables
        ],
        "exclude_ids": {str(path): sha256_file(path) for path in sorted(files)},
    }
