"""What the loop is fed: this rank's micro-batches, in order, read ahead by worker processes.

step -> sample indices (order.py) -> PairedSamples (pair.py) -> PairedBatch (batch.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist
from torch.utils.data import DataLoader

from genrecal.core.errors import GenrecalError
from genrecal.data.batch import PairedBatch, collate
from genrecal.data.order import step_indices
from genrecal.data.pair import PairedSample, PairReader
from genrecal.train.settings import DataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What is read, and how it is dealt to the ranks."""

    reader: PairReader
    data: DataConfig
    seed: int
    steps: int
    micro_batch: int
    accumulation: int


def micro_batches(feed: Feed, *, first: int) -> Iterator[PairedBatch]:
    """The micro-batches of this rank, in order, from step `first` on.

    Raises:
        GenrecalError: a sample cannot be read.
    """
    samples = feed.reader.samples
    window = feed.data.buckets
    lengths = samples.lengths if window else None
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
        collate_fn=partial(_read, feed.reader, padding(feed.reader)),
        num_workers=feed.data.workers,
    )
    for batch in loader:
        if isinstance(batch, GenrecalError):
            raise batch
        yield batch


def padding(reader: PairReader) -> Callable[[list[PairedSample]], PairedBatch]:
    """How the reader's samples become a batch."""
    return partial(
        collate,
        student_padding=reader.student.tokenizer.pad_token_id,
        teacher_paddings=[teacher.tokenizer.pad_token_id for teacher in reader.teachers],
        student_blank=reader.student_blank,
        teacher_blanks=reader.teacher_blanks,
    )


def _read(
    reader: PairReader, pad: Callable[..., PairedBatch], indices: list[int]
) -> PairedBatch | GenrecalError:
    """A micro-batch, or what is wrong with it, as a value: a worker's exceptions arrive as tracebacks."""
    try:
        return pad([reader[index] for index in indices])
    except GenrecalError as error:
        return error
