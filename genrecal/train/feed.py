"""What the loop is fed: this rank's micro-batches, in order, read ahead by worker processes.

step -> sample indices (order.py) -> PairedSamples (pair.py) -> PairedBatch (batch.py)

With `on_bad: skip`, a sample that cannot be read leaves a row without an answer, and what is wrong with it
comes with the batch; `settle` makes it known to all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from genrecal.core.errors import DataError, GenrecalError
from genrecal.data.batch import PairedBatch, collate
from genrecal.data.order import step_indices
from genrecal.data.pair import PairedSample, PairReader
from genrecal.data.quarantine import Quarantine, Quarantined, quarantined
from genrecal.train.orphans import die_with_parent
from genrecal.train.settings import DataConfig
from genrecal.train.stopping import leave_to_parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What is read, and how it is dealt to the ranks."""

    reader: PairReader
    quarantine: Quarantine
    data: DataConfig
    seed: int
    steps: int
    micro_batch: int
    accumulation: int


def micro_batches(feed: Feed, *, first: int) -> Iterator[PairedBatch]:
    """The micro-batches of this rank, in order, from step `first` on.

    Raises:
        GenrecalError: a sample cannot be read, and none may be left out.
    """
    samples = feed.reader.samples
    window = feed.data.buckets
    lengths = samples.token_lengths(_readers(feed.reader)) if window else None
    # A generator: a stage of the paper has millions of micro-batches.
    rows = (
        row
        for step in range(first, feed.steps)
        for row in step_indices(
            samples=samples.parts,
            seed=feed.seed,
            step=step,
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            micro_batch=feed.micro_batch,
            accumulation=feed.accumulation,
            window=window,
            steps=feed.steps,
            lengths=lengths,
        )
    )
    loader = DataLoader(
        range(len(feed.reader)),  # type: ignore[arg-type]
        batch_sampler=rows,
        collate_fn=partial(_read, feed.reader, feed.quarantine, padding(feed.reader)),
        num_workers=feed.data.workers,
        worker_init_fn=_start_worker,
    )
    for batch in loader:
        if isinstance(batch, GenrecalError):
            raise batch
        yield batch


def _readers(reader: PairReader) -> list[Any]:
    """The processors of the models that run; a teacher whose features are on disk does not."""
    ways = zip(reader.teachers, reader.reads[1:], strict=True)
    return [reader.student, *(teacher for teacher, reads in ways if reads is None or reads.pixels)]


def _start_worker(number: int) -> None:
    die_with_parent()
    leave_to_parent()


def padding(reader: PairReader) -> Callable[[list[PairedSample]], PairedBatch]:
    """How the reader's samples become a batch."""
    return partial(
        collate,
        student_padding=reader.student.tokenizer.pad_token_id,
        teacher_paddings=[teacher.tokenizer.pad_token_id for teacher in reader.teachers],
        student_blank=reader.student_blank,
        teacher_blanks=reader.teacher_blanks,
    )


def readable(reader: PairReader, quarantine: Quarantine, *, count: int) -> list[PairedSample]:
    """The first `count` samples, without those that are to be left out.

    Raises:
        GenrecalError: a sample cannot be read, and none may be left out.
    """
    found = (read(reader, quarantine, index) for index in range(len(reader)))
    return list(islice((one for one in found if not isinstance(one, Quarantined)), count))


def read(reader: PairReader, quarantine: Quarantine, index: int) -> PairedSample | Quarantined:
    """The sample at `index`, or why it is left out.

    Raises:
        GenrecalError: it cannot be read, and none may be left out.
    """
    sample, place = reader.samples[index], reader.samples.place(index)
    if quarantine.skips and quarantine.holds(place, sample.id):
        return quarantine.known[place]
    try:
        return reader[index]
    except DataError as error:
        if quarantine.skips:
            return quarantined(place, sample.id, sample.source, error)
        fix = f"{error.fix}; with" if error.fix else "With"
        raise DataError(
            error.what, where=error.where, fix=f"{fix} data.on_bad: skip it is left out, and the run goes on"
        ) from None


def settle(
    quarantine: Quarantine, batches: Sequence[PairedBatch], found: float, *, stage: str, step: int
) -> None:
    """Write down what the batches of a step lack, before the step is taken; every rank calls it.

    Args:
        quarantine: of this rank.
        batches: of this rank.
        found: `news` of all ranks, summed; where it is 0, nothing is exchanged.
        stage: and `step`: where it was found.

    Raises:
        DataError: more is left out than may be; on every rank alike.
    """
    if not found:
        return
    mine = quarantine.fresh(one for batch in batches for one in batch.quarantined)
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, mine)
    quarantine.add(by_rank, stage=stage, step=step)
    quarantine.require_within_limit()


def news(quarantine: Quarantine, batches: Sequence[PairedBatch]) -> int:
    """How many samples the batches lack of which no rank knew before."""
    return len(quarantine.fresh(one for batch in batches for one in batch.quarantined))


def _read(
    reader: PairReader, quarantine: Quarantine, pad: Callable[..., PairedBatch], indices: list[int]
) -> PairedBatch | GenrecalError:
    """A micro-batch, or what is wrong with it, as a value: a worker's exceptions arrive as tracebacks."""
    try:
        found = [read(reader, quarantine, index) for index in indices]
        batch = pad([reader.absent if isinstance(one, Quarantined) else one for one in found])
    except GenrecalError as error:
        return error
    return replace(batch, quarantined=tuple(one for one in found if isinstance(one, Quarantined)))
