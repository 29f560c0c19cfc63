"""A census for people, for programs, and for the next run: tables, JSON, and the ids to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from genrecal.core.console import console
from genrecal.core.errors import DataError
from genrecal.core.files import write_json
from genrecal.core.types import DOMAINS
from genrecal.data.bad import BadRows
from genrecal.data.census import PERCENTILES, Census, percentiles, take_census
from genrecal.data.overlap import TestIndex
from genrecal.data.source import MixtureConfig

SHOWN_REASONS = 15
SHOWN_DUPLICATES = 3


def check_data(
    config: MixtureConfig,
    *,
    tests: TestIndex | None,
    workers: int,
    json_file: Path | None = None,
    bad_file: Path | None = None,
    exclude_file: Path | None = None,
) -> Census:
    """Take the census, print it and write what was asked for.

    Raises:
        DataError: more rows are bad than the config skips, or a sample is in a test set and not excluded.
    """
    bad = BadRows()
    partial = bad_file.with_name(f".{bad_file.name}.partial") if bad_file else None
    census = take_census(config, tests=tests, workers=workers, bad=bad, journal=partial)
    if partial and bad_file:
        partial.replace(bad_file)
    show(census)
    if json_file:
        write_json(json_file, as_json(census))
    if exclude_file:
        ids = sorted({found["id"] for found in census.overlaps})
        write_json(exclude_file, {"ids": ids, "samples": census.overlaps})
        console.print(f"{len(ids):,} ids to leave out: {exclude_file}")
    if bad.count and not (config.on_bad == "skip" and bad.count <= config.max_bad):
        bad.fail()
    if census.overlaps and not exclude_file:
        _fail_at_overlap(census)
    return census


def _fail_at_overlap(census: Census) -> None:
    first = next((one for one in census.overlaps if one["why"] == "image"), census.overlaps[0])
    more = f", and {len(census.overlaps) - 1:,} more" if len(census.overlaps) > 1 else ""
    if first["why"] == "image":
        what = f"the test image '{first['test']}' is the training image of sample '{first['id']}'{more}"
    else:
        what = f"the test question '{first['test']}' is training sample '{first['id']}'{more}"
    raise DataError(
        what,
        where=first["where"],
        fix="--exclude FILE writes the ids of such samples, for exclude_ids in the config",
    )


def as_json(census: Census) -> dict[str, Any]:
    """The census as plain values."""
    tests = census.tests
    return {
        "samples": census.samples,
        "sources": [
            {
                "path": source.path,
                "rows": source.rows,
                "samples": source.samples,
                "bad": source.bad,
                "excluded": source.excluded,
                "domains": dict(source.domains),
            }
            for source in census.sources
        ],
        "domains": _domains(census),
        "characters": percentiles(census.characters),
        "images": percentiles(census.images),
        "bad": {"rows": census.bad, "reasons": dict(census.reasons.most_common())},
        "duplicates": {"samples": census.duplicates, "groups": census.duplicate_groups},
        "overlap": None
        if tests is None
        else {
            "test_questions": tests.questions,
            "test_images": tests.images,
            "samples": len(census.overlaps),
            "same_words_other_image": census.same_words,
            "found": census.overlaps,
        },
    }


def show(census: Census) -> None:
    """Print the census."""
    counts = Table("source", "domain", title="samples")
    for name in ("samples", "excluded", "bad rows"):
        counts.add_column(name, justify="right")
    for source in census.sources:
        domains = [(domain, source.domains[domain]) for domain in DOMAINS if source.domains[domain]]
        for place, (domain, number) in enumerate(domains or [("", 0)]):
            rest = ("", "", "") if place else (source.path, f"{source.excluded:,}", f"{source.bad:,}")
            counts.add_row(rest[0], domain, f"{number:,}", *rest[1:])
    counts.add_section()
    excluded = sum(source.excluded for source in census.sources)
    for domain, number in _domains(census).items():
        counts.add_row("all", domain, f"{number:,}")
    counts.add_row("all", "all", f"{census.samples:,}", f"{excluded:,}", f"{census.bad:,}")
    console.print(counts)
    if census.samples:
        console.print(_lengths(census))
    if census.reasons:
        reasons = Table("rows", "cannot be used: the row, or its image,", title="bad rows")
        for reason, number in census.reasons.most_common(SHOWN_REASONS):
            reasons.add_row(f"{number:,}", reason)
        console.print(reasons)
    console.print(f"{census.duplicates:,} samples are there twice: the same images and the same words")
    for group in census.duplicate_groups[:SHOWN_DUPLICATES]:
        line = f"  {' = '.join(group[:4])}{' = …' if len(group) > 4 else ''}"
        console.print(line, markup=False, soft_wrap=True)
    tests = census.tests
    if tests is not None:
        console.print(
            f"{tests.questions:,} test questions with {tests.images:,} images:"
            f" {len(census.overlaps):,} samples are among them"
        )
        for why in sorted({found["why"] for found in census.overlaps}):
            console.print(f"  by {why}: {sum(found['why'] == why for found in census.overlaps):,}")
        console.print(f"  {census.same_words:,} more ask the same words about another image, or in few words")


def _lengths(census: Census) -> Table:
    lengths = Table("a sample's", title="lengths")
    for name in ("smallest", *(f"{percent}%" for percent in PERCENTILES[1:-1]), "largest", "mean"):
        lengths.add_column(name, justify="right")
    for name, values in (("characters", census.characters), ("images", census.images)):
        found = percentiles(values)
        numbers = [f"{value:,.1f}" if key == "mean" else f"{value:,}" for key, value in found.items()]
        lengths.add_row(name, *numbers)
    return lengths


def _domains(census: Census) -> dict[str, int]:
    return {domain: sum(source.domains[domain] for source in census.sources) for domain in DOMAINS}
