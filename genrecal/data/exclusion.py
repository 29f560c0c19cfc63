"""What is left out of a mixture by id: a test set's samples, as `genrecal data check --exclude` names them.

An id that no row bears leaves nothing out. Where a file has none other, its data is not this data, or their
names have changed: that is an error, as the run would train on what it was told to leave out. Where some ids
have no row the file may serve several mixtures: that is only noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.files import read_json
from genrecal.data.cache import Table
from genrecal.data.source import MixtureConfig, SourceConfig


@dataclass(frozen=True, kw_only=True)
class ExcludedIds:
    """Ids that a source leaves out; a conversation's stands for each of its answers' samples."""

    files: Mapping[Path, frozenset[str]]  # what each of them names
    each: bool  # whether a sample's id is its conversation's with the answer's number

    @cached_property
    def ids(self) -> frozenset[str]:
        return frozenset[str]().union(*self.files.values())

    def meant(self, name: str) -> list[str]:
        """The ids that stand for the sample."""
        names = (name, name.rpartition("#")[0]) if self.each else (name,)
        return [one for one in names if one in self.ids]

    def holds(self, name: str) -> bool:
        return bool(self.meant(name))


def exclusion_files(config: MixtureConfig, source: SourceConfig) -> tuple[Path, ...]:
    """The file for all sources and the source's own, as far as there are any."""
    return tuple(path for path in (config.exclude_ids, source.exclude_ids) if path is not None)


def excluded_ids(config: MixtureConfig, source: SourceConfig) -> ExcludedIds:
    """What the config leaves out of `source`.

    Raises:
        DataError: a file holds no list of ids.
    """
    files = {path: frozenset(_ids(path)) for path in exclusion_files(config, source)}
    return ExcludedIds(files=files, each=source.turns == "each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The rows that are not left out, and what is odd about the rest."""

    chosen: np.ndarray  # bool [N], of all rows of all tables
    notes: tuple[str, ...]  # about ids that no row bears


def without_ids(tables: Sequence[Table], config: MixtureConfig) -> Kept:
    """Look at the id of every row.

    Raises:
        DataError: a file holds no list of ids, or only such as no row bears.
    """
    chosen, known = [], {}
    without_row: dict[Path, frozenset[str]] = {}
    for table in tables:
        excluded = excluded_ids(config, table.source)
        kept, met = np.ones(len(table), bool), set()
        if excluded.ids:
            names = (name for batch in table.ids() for name in batch.to_pylist())
            for row, name in enumerate(names):
                if meant := excluded.meant(name):
                    kept[row] = False
                    met.update(meant)
        chosen.append(kept)
        known |= excluded.files
        for path, ids in excluded.files.items():
            without_row[path] = without_row.get(path, ids) - met
    notes = [_note(path, ids, len(known[path])) for path, ids in without_row.items() if ids]
    return Kept(chosen=np.concatenate(chosen), notes=tuple(notes))


def _note(path: Path, without_row: frozenset[str], total: int) -> str:
    example = f"'{min(without_row)}' for one"
    fix = "`genrecal data check --exclude` on this data writes the file anew"
    if len(without_row) == total:
        raise DataError(
            f"leaves nothing out: no row bears one of its {total:,} ids, {example}",
            where=path,
            fix=f"{fix}; a file about other data does not belong here",
        )
    return f"{path}: no row bears {len(without_row):,} of its {total:,} ids, {example}. {fix}"


def _ids(path: Path) -> Iterator[str]:
    try:
        content = read_json(path)
    except GenrecalError as error:
        raise DataError(error.what, where=path, fix=error.fix) from None
    ids = content.get("ids") if isinstance(content, dict) else content
    if not isinstance(ids, list) or not all(isinstance(one, str | int) for one in ids):
        raise DataError("holds no list of ids", where=path)
    return (str(one) for one in ids)
