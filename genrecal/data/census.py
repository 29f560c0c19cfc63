"""What is in training data before anything trains on it: counts, lengths, bad rows, copies, overlap.

    sources -> rows -> Readings -> fingerprints of the images -> Census

One pass; of a sample a few numbers stay in memory.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genrecal.core.errors import DataError
from genrecal.core.eta import with_eta
from genrecal.core.types import Sample
from genrecal.data.bad import BadRows
from genrecal.data.exclusion import excluded_ids
from genrecal.data.fingerprints import Prints, with_fingerprints
from genrecal.data.overlap import Fingerprint, TestIndex, normalised
from genrecal.data.source import MixtureConfig, Reading, SourceConfig, read_source, source_rows

# What stands for an image in some model: training refuses it in a text.
IMAGE_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<IMG_CONTEXT>", "<image_soft_token>", "<|image|>")
PERCENTILES = (0, 50, 90, 99, 100)
NAMED = 20  # groups of duplicates


@dataclass(slots=True, kw_only=True)
class SourceCount:
    """One source's share."""

    path: str
    rows: int = 0
    samples: int = 0
    bad: int = 0
    excluded: int = 0
    domains: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class Census:
    """What was found."""

    sources: list[SourceCount] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)  # of bad rows
    characters: array[int] = field(default_factory=lambda: array("q"))  # of each sample's turns
    images: array[int] = field(default_factory=lambda: array("q"))  # of each sample
    duplicates: int = 0  # samples that were there before
    duplicate_groups: list[list[str]] = field(default_factory=list)  # the first of them
    overlaps: list[dict[str, Any]] = field(default_factory=list)
    same_words: int = 0  # samples that ask a test question's words about another image
    tests: TestIndex | None = None

    @property
    def samples(self) -> int:
        return len(self.characters)

    @property
    def bad(self) -> int:
        return sum(source.bad for source in self.sources)


def take_census(
    config: MixtureConfig, *, tests: TestIndex | None, workers: int, bad: BadRows, journal: Path | None
) -> Census:
    """Read everything once.

    Args:
        config: the sources; what it excludes is counted and not looked at.
        tests: the questions of the test sets, if any.
        workers: processes that open images.
        bad: takes the bad rows; it must not skip, so that the reading goes on.
        journal: a file for one JSON line for each bad row.

    Raises:
        DataError: a source as a whole cannot be read.
    """
    census = Census(tests=tests)
    seen = _Seen()
    with ExitStack() as stack:
        stream = stack.enter_context(journal.open("w", encoding="utf-8")) if journal else None
        for number, source in enumerate(config.sources):
            count = SourceCount(path=source.name)
            census.sources.append(count)
            excluded = excluded_ids(config, source)
            for reading, prints in _read(source, workers):
                count.rows += 1
                reading = _checked(reading, prints)
                if reading.error is not None:
                    count.bad += 1
                    census.reasons[_reason(reading.error)] += 1
                    facts = reading.facts(source.name)
                    bad.add(facts)
                    if stream:
                        stream.write(json.dumps(facts) + "\n")
                    continue
                for sample in reading.samples:
                    if sample.domain in config.exclude_domains or excluded.holds(sample.id):
                        count.excluded += 1
                        continue
                    _count(census, count, sample)
                    of_sample = prints[: len(sample.images)]
                    seen.add(sample, of_sample, number, reading.row.number)
                    _compare(census, sample, of_sample, reading)
    census.duplicates, census.duplicate_groups = seen.duplicates([source.name for source in config.sources])
    return census


def _read(source: SourceConfig, workers: int) -> Iterator[tuple[Reading, Any]]:
    rows = source_rows(source)
    return with_eta(
        with_fingerprints(read_source(source, rows), workers=workers),
        what=f"checking {source.path}",
        total=rows.total,
        done=lambda found: found[0].row.done,
    )


def _checked(reading: Reading, prints: Prints) -> Reading:
    """The reading, with an error if an image cannot be opened or a text holds what stands for an image."""
    if reading.error is not None:
        return reading
    where = reading.row.where
    if isinstance(prints, DataError):
        what = f"{prints.what} (image {prints.where})"
        return Reading(row=reading.row, error=DataError(what, where=where, fix=prints.fix))
    for turn in reading.samples[-1].turns:
        for token in IMAGE_TOKENS:
            if token in turn.text:
                what = f"has the text '{token}', which stands for an image"
                return Reading(row=reading.row, error=DataError(what, where=where))
    return reading


def _reason(error: DataError) -> str:
    """A bad row's reason without what only this row has: quoted values, brackets, what follows a colon."""
    words = error.what.partition(":")[0].partition(" (")[0]
    return " ".join(
        "…" if word.strip("'").isdigit() or word.startswith("'") else word for word in words.split()
    )


def _count(census: Census, count: SourceCount, sample: Sample) -> None:
    count.samples += 1
    count.domains[sample.domain] += 1
    census.characters.append(sum(len(turn.text) for turn in sample.turns))
    census.images.append(len(sample.images))


def _compare(census: Census, sample: Sample, prints: Sequence[Fingerprint], reading: Reading) -> None:
    if census.tests is None:
        return
    match = census.tests.match(sample, prints)
    if match is not None:
        names = [str(image) for image in sample.images]
        census.overlaps.append(
            {
                "id": sample.id,
                "source": sample.source,
                "where": reading.row.where,
                "images": names,
                "test": match.test,
                "why": match.why,
            }
        )
    elif census.tests.asks_the_same(sample):
        census.same_words += 1


class _Seen:
    """64 bits of every sample's images and words: ten million samples take 200 MB."""

    def __init__(self) -> None:
        self.keys, self.sources, self.rows = array("Q"), array("L"), array("L")

    def add(self, sample: Sample, prints: Sequence[Fingerprint], source: int, row: int) -> None:
        digest = hashlib.sha256(b"".join(one.pixels for one in prints))
        digest.update("\0".join(normalised(turn.text) for turn in sample.turns).encode())
        self.keys.append(int.from_bytes(digest.digest()[:8], "big"))
        self.sources.append(source)
        self.rows.append(row)

    def duplicates(self, names: Sequence[str]) -> tuple[int, list[list[str]]]:
        """Samples that were there before, and the first groups of equal ones by source and row."""
        keys = np.frombuffer(self.keys, np.uint64) if self.keys else np.zeros(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        new = (
            np.concatenate([[True], keys[order][1:] != keys[order][:-1]]) if len(keys) else np.zeros(0, bool)
        )
        starts = np.flatnonzero(new)
        sizes = np.diff([*starts, len(keys)])
        large = starts[sizes > 1]
        first = large[np.argsort(order[large])][:NAMED]
        size_at = dict(zip(starts.tolist(), sizes.tolist(), strict=True)) if len(large) else {}
        groups = [
            [
                f"{names[self.sources[place]]} row {self.rows[place]}"
                for place in order[start : start + size_at[start]]
            ]
            for start in first.tolist()
        ]
        return int(len(keys) - len(starts)), groups


def percentiles(values: array[int]) -> dict[str, float]:
    """p0 (the smallest), p50, p90, p99, p100 (the largest) and the mean; empty without values."""
    if not values:
        return {}
    numbers = np.frombuffer(values, np.int64)
    found = np.percentile(numbers, PERCENTILES, method="nearest")
    named = {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, found, strict=True)}
    return named | {"mean": float(numbers.mean())}
