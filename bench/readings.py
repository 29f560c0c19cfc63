"""What a rule read in each reply, and what a judge said of it: beside the answers, for who looks at them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.journal import read_lines
from bench.task import Outcome
from genrecal.core.files import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Of one reply."""

    read: str | None  # None: a judge grades it, no rule reads it; empty: the rule found nothing
    words: str | None  # None: there is no judge


def readings_of(output: Path, name: str) -> Path:
    return output / "readings" / f"{name}.jsonl"


def write_readings(output: Path, name: str, outcome: Outcome) -> None:
    """Write a line for each row; scoring starts anew from the answers, and so do its readings."""
    rows = dict.fromkeys((*outcome.read, *outcome.words))
    lines = [
        json.dumps({"id": row, "read": outcome.read.get(row), "words": outcome.words.get(row)})
        for row in rows
    ]
    write_text(readings_of(output, name), "".join(f"{line}\n" for line in lines))


def read_readings(output: Path, name: str) -> dict[str, Reading]:
    """The readings of a bench folder by row; none where it was written before there were any."""
    return {
        line["id"]: Reading(read=line.get("read"), words=line.get("words"))
        for line in read_lines(readings_of(output, name))
    }
