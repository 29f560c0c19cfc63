"""What the check before the first step reads: some samples of every source and domain, by every model.

Each sample is there twice, with its own images and with another sample's (image_effect.py). Every rank reads
the same ones, which is proven before any model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from PIL import Image

from genrecal.core.errors import DataError, TrainError
from genrecal.core.types import Sample
from genrecal.data.belonging import Finding
from genrecal.data.inputs import Prompt
from genrecal.data.mixture import Mixture
from genrecal.data.pair import PairReader, TokenizedSample, open_images, tokenize
from genrecal.train.image_effect import exchanged_images
from genrecal.train.objective import Objective
from genrecal.train.recording import Stored
from genrecal.train.settings import RunConfig

# So many times the wanted samples are tried at the most: some may be too long, or damaged.
TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A model of the stage, and what reads samples for it."""

    name: str  # student, teacher, teacher@1, ...
    folder: Path
    model: Any
    processor: Any
    blank: Prompt
    domains: tuple[str, ...] | None  # of the samples that it teaches; None: all
    teaches: bool
    stored: Stored | None = None  # where its features come from, if its body is not loaded

    def reads(self, sample: Sample) -> bool:
        return self.domains is None or sample.domain in self.domains


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSample:
    """A sample as the models read it, in the order of their seats."""

    sample: Sample
    own: tuple[TokenizedSample, ...]
    fed: tuple[TokenizedSample, ...]  # what the loop is given of it: features, where they are stored
    exchanged: tuple[TokenizedSample, ...] | None  # with another sample's images; None for text alone


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSamples:
    """The samples, and what could not be read on the way to them."""

    samples: tuple[ReadSample, ...]
    findings: tuple[Finding, ...]


def seats_of(config: RunConfig, objective: Objective, reader: PairReader) -> list[Seat]:
    """The student, and the teachers that the stage has."""
    student = Seat(
        name="student",
        folder=config.student,
        model=objective.student,
        processor=reader.student,
        blank=reader.student_blank,
        domains=None,
        teaches=False,
    )
    teachers = [
        Seat(
            name=teacher_name(place),
            folder=config.sources[place].path,
            model=part.teacher,
            processor=reader.teachers[place],
            blank=reader.teacher_blanks[place],
            domains=config.sources[place].domains,
            teaches=True,
            stored=way if isinstance(way, Stored) else None,
        )
        for place, (part, way) in enumerate(zip(objective.sources, reader.reads[1:], strict=True))
    ]
    return [student, *teachers]


def teacher_name(place: int) -> str:
    """Of the seat of the config's teacher number `place`."""
    return "teacher" if place == 0 else f"teacher@{place}"


def spread(mixture: Mixture, count: int) -> list[int]:
    """Indices of at most `count` samples: each source and domain in turn, evenly spaced within it."""
    sizes = [part.samples for part in mixture.parts]
    groups = np.repeat(np.arange(len(sizes)), sizes) * 256 + mixture.domains
    columns = []
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
        # Not in their order: the first few of a column lie far apart, too.
        columns.append(places[np.random.default_rng(int(group)).permutation(chosen)])
    turns = (column[turn] for turn in range(count) for column in columns if turn < len(column))
    return [int(index) for _, index in zip(range(count), turns, strict=False)]


def read_samples(seats: Sequence[Seat], reader: PairReader, mixture: Mixture, count: int) -> ReadSamples:
    """The first `count` samples that the processors of all seats can read.

    Args:
        seats: in the order of the reader's models, its student's first.
        reader: gives what the loop is given of a sample.
        mixture: the same samples, with their sources and domains.
        count: so many at the most.

    Raises:
        DataError: none can be read.
    """
    samples: list[Sample] = []
    images: list[list[Image.Image]] = []
    own: list[tuple[TokenizedSample, ...]] = []
    fed: list[tuple[TokenizedSample, ...]] = []
    unreadable: list[DataError] = []
    for index in spread(mixture, TRIES * count):
        sample = reader.samples[index]
        try:
            opened = open_images(sample)
            rows, pair = _tokenized(seats, sample, opened, reader.max_tokens), reader[index]
        except DataError as error:
            unreadable.append(error)
            continue
        samples.append(sample)
        images.append(opened)
        own.append(rows)
        fed.append((pair.student, *pair.teachers))
        if len(samples) == count:
            break
    if not samples:
        raise DataError(f"none of {len(unreadable)} samples can be read: {unreadable[0]}", where="data")
    exchanged = [
        None if others is None else _tokenized(seats, sample, others, reader.max_tokens)
        for sample, others in zip(samples, exchanged_images(samples, images), strict=True)
    ]
    columns = zip(samples, own, fed, exchanged, strict=True)
    read = tuple(
        ReadSample(sample=sample, own=mine, fed=given, exchanged=others)
        for sample, mine, given, others in columns
    )
    return ReadSamples(samples=read, findings=tuple(_unread(unreadable, len(read))))


def _unread(unreadable: Sequence[DataError], read: int) -> list[Finding]:
    if not unreadable:
        return []
    many = len(unreadable) > read
    return [
        Finding(
            level="error" if many else "warning",
            what=f"{len(unreadable)} of {len(unreadable) + read} samples cannot be read, for one:"
            f" {unreadable[0]}",
            fix="Are chat template, tokenizer and processor the models' own?" if many else "",
        )
    ]


def _tokenized(
    seats: Sequence[Seat], sample: Sample, images: list[Image.Image], max_tokens: int
) -> tuple[TokenizedSample, ...]:
    return tuple(tokenize(sample, seat.processor, images, max_tokens=max_tokens) for seat in seats)


def require_same(samples: Sequence[ReadSample]) -> None:
    """Raise a TrainError on all ranks unless all of them have read the same."""
    mine = [(one.sample.id, [row.question_ids.tolist() for row in one.own]) for one in samples]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    other = first_other(everyone)
    if other is not None:
        raise TrainError(
            f"rank {other} reads other samples or other tokens than rank 0",
            fix="Do all nodes see the same data and models?",
        )


def first_other(everyone: Sequence[Any]) -> int | None:
    """The first rank whose entry is not rank 0's."""
    return next((rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]), None)
