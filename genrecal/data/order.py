"""Which sample is read when: a pure function of seed, step and rank, so that resuming needs no state."""

from __future__ import annotations

import numpy as np


def step_indices(
    *, samples: int, seed: int, step: int, rank: int, ranks: int, micro_batch: int, accumulation: int
) -> list[list[int]]:
    """The sample indices of one optimizer step on one rank, a list for each micro-batch.

    Every pass over the samples has its own permutation and passes follow each other without a gap. The
    samples of a step depend only on ranks x accumulation x micro_batch, so one rank with twice the
    accumulation takes the same step as two.
    """
    per_step = ranks * accumulation * micro_batch
    rows = []
    for micro in range(accumulation):
        first = step * per_step + (micro * ranks + rank) * micro_batch
        rows.append([_at(position, samples, seed) for position in range(first, first + micro_batch)])
    return rows


def step_count(*, samples: int, epochs: float, ranks: int, micro_batch: int, accumulation: int) -> int:
    """Optimizer steps of `epochs` passes, rounded to whole steps (the paper's 9M samples: 549 and 1,099)."""
    return max(1, round(samples * epochs / (ranks * micro_batch * accumulation)))


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _at(position: int, samples: int, seed: int) -> int:
    epoch, offset = divmod(position, samples)
    key = (seed, epoch, samples)
    if key not in _PERMUTATIONS:
        _PERMUTATIONS.clear()  # at most two passes meet in a step; the last one is made again cheaply
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch]).permutation(samples)
    return int(_PERMUTATIONS[key][offset])
