"""Which sample is read when: a pure function of seed, step and rank, so that resuming needs no state.

    parts with weights -> the epoch's draw -> its permutation -> positions 0, 1, 2, … of all epochs in a row
      -> (with buckets) sorted by length within a window of global batches
      -> a step: the next micro_batch x accumulation x ranks positions; a rank takes its slices

What a step reads depends on the size of the global batch alone, so a run can go on with other ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Third words of the seeds, so that no two streams of random numbers are the same.
_GROUPS, _SHARE = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Samples that follow each other and have one weight: a source's."""

    samples: int
    weight: float = 1.0

    @property
    def whole(self) -> int:
        """How often an epoch has every one of them."""
        return math.floor(self.weight)

    @property
    def share(self) -> int:
        """How many of them an epoch has once more."""
        return round((self.weight - self.whole) * self.samples)

    @property
    def drawn(self) -> int:
        return self.whole * self.samples + self.share


Samples = int | Sequence[Part]


def epoch_size(samples: Samples) -> int:
    """Samples read in one epoch."""
    return samples if isinstance(samples, int) else sum(part.drawn for part in samples)


def step_count(*, samples: Samples, epochs: float, ranks: int, micro_batch: int, accumulation: int) -> int:
    """Optimizer steps of `epochs` passes, rounded to whole steps (the paper's 9M samples: 549 and 1,099)."""
    return max(1, round(epoch_size(samples) * epochs / (ranks * micro_batch * accumulation)))


def step_indices(
    *,
    samples: Samples,
    seed: int,
    step: int,
    rank: int,
    ranks: int,
    micro_batch: int,
    accumulation: int,
    window: int = 0,
    steps: int = 0,
    lengths: np.ndarray | None = None,
) -> list[list[int]]:
    """The sample indices of one optimizer step on one rank, a list for each micro-batch.

    Every epoch has its own permutation and epochs follow each other without a gap. One rank with twice the
    accumulation takes the same step as two.

    Args:
        samples: their number, or the parts that they consist of, with weights.
        seed: of all draws.
        step: from 0.
        rank: this process.
        ranks: all processes.
        micro_batch: samples of one list.
        accumulation: lists.
        window: so many global batches are sorted by length together; 0: none.
        steps: of the whole run; the last window ends there. Needed with `window`.
        lengths: of every sample, in any unit. Needed with `window`.
    """
    per_step = ranks * accumulation * micro_batch
    if window:
        if lengths is None or not 0 <= step < steps:
            raise ValueError("a window needs lengths, and a step of the run")
        whole = _sorted_step(samples, seed, step, per_step, window, steps, lengths)
        starts = [(micro * ranks + rank) * micro_batch for micro in range(accumulation)]
        return [whole[start : start + micro_batch].tolist() for start in starts]
    first = step * per_step + rank * micro_batch
    starts = [first + micro * ranks * micro_batch for micro in range(accumulation)]
    return [_at(np.arange(start, start + micro_batch), samples, seed).tolist() for start in starts]


def read_by(samples: Samples, *, seed: int, steps: int, per_step: int) -> np.ndarray:
    """Which samples the first `steps` steps of `per_step` samples read, bool [N]; windows change nothing."""
    size = samples if isinstance(samples, int) else sum(part.samples for part in samples)
    read = np.zeros(size, bool)
    for first in range(0, steps * per_step, epoch_size(samples)):
        last = min(first + epoch_size(samples), steps * per_step)
        read[_at(np.arange(first, last), samples, seed)] = True
    return read


def _sorted_step(
    samples: Samples,
    seed: int,
    step: int,
    per_step: int,
    window: int,
    steps: int,
    lengths: np.ndarray,
) -> np.ndarray:
    """All indices of a step, [per_step], ascending in length, of the groups that its window deals to it.

    The window's samples are sorted and cut into groups of neighbours; a step gets about the square root of
    its size in groups, drawn at random: so it holds short and long samples as every other step does, and a
    micro-batch, a piece of the sorted step, samples of nearly one length.
    """
    number, place = divmod(step, window)
    first = number * window * per_step
    count = min(window, steps - number * window) * per_step
    key = (samples if isinstance(samples, int) else tuple(samples), seed, number, per_step, window, count)
    if _WINDOW.get("key") != key or _WINDOW.get("lengths") is not lengths:
        indices = _at(np.arange(first, first + count), samples, seed)
        indices = indices[np.argsort(lengths[indices], kind="stable")]
        group = next(size for size in range(math.isqrt(per_step), 0, -1) if per_step % size == 0)
        dealt = np.random.default_rng([seed, number, _GROUPS]).permutation(count // group)
        indices = indices.reshape(-1, group)[dealt].reshape(-1)
        _WINDOW.update(key=key, lengths=lengths, indices=indices)
    whole = _WINDOW["indices"][place * per_step : (place + 1) * per_step]
    return whole[np.argsort(lengths[whole], kind="stable")]


# The window that was read last: its steps follow each other.
_WINDOW: dict = {}


def _at(positions: np.ndarray, samples: Samples, seed: int) -> np.ndarray:
    """The indices at ascending positions of all epochs in a row."""
    size = epoch_size(samples)
    epochs, offsets = np.divmod(positions, size)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        slots = _permutation(seed, int(epoch), size)[offsets[here]]
        indices[here] = slots if isinstance(samples, int) else _drawn(slots, samples, seed, int(epoch))
    return indices


@lru_cache(maxsize=1)  # two epochs meet in few steps; the other one is made again
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def _drawn(slots: np.ndarray, parts: Sequence[Part], seed: int, epoch: int) -> np.ndarray:
    """The samples behind an epoch's slots: all of a part `whole` times, then its share."""
    ends = np.cumsum([part.drawn for part in parts])
    starts = np.cumsum([0, *(part.samples for part in parts)])
    numbers = np.searchsorted(ends, slots, side="right")
    indices = np.empty_like(slots)
    for number in np.unique(numbers):
        part, here = parts[number], numbers == number
        local = slots[here] - (ends[number] - part.drawn)
        extra = local >= part.whole * part.samples
        local[~extra] %= part.samples
        if extra.any():
            # The share moves on through one fixed order: epochs take turns, and none has a sample twice.
            order = _share_order(seed, int(number), part.samples)
            behind = local[extra] - part.whole * part.samples
            local[extra] = order[(epoch * part.share + behind) % part.samples]
        indices[here] = starts[number] + local
    return indices


@lru_cache(maxsize=64)
def _share_order(seed: int, number: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, number, _SHARE]).permutation(size).astype(np.int32)
