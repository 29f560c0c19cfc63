"""Samples that turn out to be unreadable in training: left out, written down once, counted against a limit.

    reader -> Quarantined, with the batch that lacks it -> known to all ranks -> RUN/quarantine/rank-N.jsonl

Rows that cannot be parsed are found before (bad.py) and count against the same limit. What is written down
stays out of the run: a killed run reads it again and must meet the same fate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrecal.core.errors import DataError
from genrecal.core.files import read_json, write_json

FOLDER, TOTALS = "quarantine", "quarantine.json"
NAMED = 5  # samples that an error tells
LONGEST = 300  # characters of any word of a sample that are written down


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A sample that is left out, and why."""

    place: int  # among all rows of all tables (mixture.py::Mixture.place): ids may be there twice
    id: str
    source: str
    where: str
    what: str


def quarantined(place: int, name: str, source: str, error: DataError) -> Quarantined:
    """What is kept of `error`; a sample may bear a megabyte of text as its id."""
    return Quarantined(
        place=place,
        id=name[:LONGEST],
        source=source[:LONGEST],
        where=str(error.where)[:LONGEST],
        what=error.what[:LONGEST],
    )


class Quarantine:
    """What a run has left out; every rank holds the same and writes down what it was the first to read."""

    def __init__(
        self, folder: Path, *, skips: bool, limit: int = 0, rows_left_out: int = 0, rank: int = 0
    ) -> None:
        """Know what was left out before a kill, on however many ranks.

        Args:
            folder: RUN/quarantine.
            skips: samples are left out; without it, the first one stops the run.
            limit: so many may be left out, rows that could not be parsed among them.
            rows_left_out: such rows.
            rank: this process.
        """
        self.folder, self.skips, self.limit, self.rank = folder, skips, limit, rank
        self.rows_left_out = rows_left_out
        journals = sorted(folder.glob("rank-*.jsonl")) if skips else []
        self.known = {one.place: one for journal in journals for one in _lines(journal)}

    @property
    def count(self) -> int:
        return self.rows_left_out + len(self.known)

    def holds(self, place: int, name: str) -> bool:
        """Whether the sample was left out before; one of another name is another sample: the data changed."""
        return place in self.known and self.known[place].id == name[:LONGEST]

    def fresh(self, found: Iterable[Quarantined]) -> list[Quarantined]:
        """Those of `found` that are not known yet, once each."""
        return list({one.place: one for one in found if not self.holds(one.place, one.id)}.values())

    def add(self, by_rank: Sequence[Sequence[Quarantined]], *, stage: str, step: int) -> None:
        """Take what every rank has found in one step; all ranks call it with the same."""
        mine = []
        for rank, found in enumerate(by_rank):
            for one in self.fresh(found):
                self.known[one.place] = one
                if rank == self.rank:
                    mine.append({**asdict(one), "stage": stage, "step": step, "rank": rank})
        if mine:
            _append(self.folder / f"rank-{self.rank}.jsonl", mine)

    def require_within_limit(self) -> None:
        """Raise a DataError if more is left out than the limit allows."""
        if not self.skips or self.count <= self.limit:
            return
        last = list(self.known.values())[-NAMED:]
        named = "; ".join(f"sample '{one.id}' of {one.source}: {one.where}: {one.what}" for one in last)
        raise DataError(
            f"{self.count:,} samples cannot be used ({self.rows_left_out:,} rows when the tables were built,"
            f" {len(self.known):,} when they were read), max_bad is {self.limit:,}; the last ones: {named}",
            where="data",
            fix=f"{self.folder} names all. Raise data.max_bad and run again, or mend them and delete it",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Where the data of a stage went; every sample and every row left out is in one of them."""

    kept: int
    quarantined: int  # when they were read
    rows_left_out: int  # when the tables were built
    not_read: int  # the stage was shorter than an epoch

    @property
    def total(self) -> int:
        return self.kept + self.quarantined + self.rows_left_out + self.not_read

    def sentence(self) -> str:
        """For the console."""
        unread = f" + {self.not_read:,} not read" if self.not_read else ""
        return (
            f"{self.kept:,} kept + {self.quarantined + self.rows_left_out:,} quarantined{unread} ="
            f" {self.total:,} samples ({self.rows_left_out:,} rows when the tables were built,"
            f" {self.quarantined:,} when they were read)"
        )


def totals(quarantine: Quarantine, places_N: np.ndarray, read_N: np.ndarray) -> Totals:
    """What became of a stage's samples.

    Args:
        quarantine: after the stage.
        places_N: of the stage's samples (mixture.py::Mixture.places).
        read_N: bool, those that it has read.
    """
    left_out_N = np.isin(places_N, np.array(list(quarantine.known), np.int64))
    return Totals(
        kept=int((read_N & ~left_out_N).sum()),
        quarantined=int((read_N & left_out_N).sum()),
        rows_left_out=quarantine.rows_left_out,
        not_read=int((~read_N).sum()),
    )


def note_totals(run_folder: Path, stage: str, found: Totals) -> None:
    """Write them beside those of the stages before, into RUN/quarantine.json."""
    path = run_folder / TOTALS
    before = read_json(path) if path.is_file() else {}
    write_json(path, before | {stage: {"total": found.total, **asdict(found)}})


def _append(journal: Path, rows: Sequence[dict[str, Any]]) -> None:
    """On disk before the step is taken that lacks them."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    whole = not journal.is_file() or not journal.stat().st_size or journal.read_bytes().endswith(b"\n")
    with journal.open("a", encoding="utf-8") as stream:
        # A line that a kill cut off stands alone, so that the next one is whole.
        stream.write("".join(["" if whole else "\n", *(json.dumps(row) + "\n" for row in rows)]))
        stream.flush()
        os.fsync(stream.fileno())


def _lines(journal: Path) -> list[Quarantined]:
    """The journal's samples; a kill can cut the last line off."""
    found = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            found.append(Quarantined(**{name: row[name] for name in Quarantined.__dataclass_fields__}))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found
