"""The order of samples: a pure function of seed, step and rank."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrecal.data.order import Part, epoch_size, step_count, step_indices


def flat(rows: list[list[int]]) -> list[int]:
    return [index for row in rows for index in row]


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 40),
    seed=st.integers(0, 5),
    ranks=st.integers(1, 4),
    micro_batch=st.integers(1, 5),
    accumulation=st.integers(1, 4),
)
def test_every_sample_once_in_each_pass(
    samples: int, seed: int, ranks: int, micro_batch: int, accumulation: int
) -> None:
    per_step = ranks * micro_batch * accumulation
    read: list[int] = []
    for step in range(3 * samples // per_step + 1):
        by_micro = [
            step_indices(
                samples=samples,
                seed=seed,
                step=step,
                rank=rank,
                ranks=ranks,
                micro_batch=micro_batch,
                accumulation=accumulation,
            )
            for rank in range(ranks)
        ]
        assert all(
            len(rows) == accumulation and {len(row) for row in rows} == {micro_batch} for rows in by_micro
        )
        for micro in range(accumulation):
            for rank in range(ranks):
                read += by_micro[rank][micro]
    for start in range(0, 3 * samples, samples):
        if start + samples <= len(read):
            assert Counter(read[start : start + samples]) == Counter(range(samples))


@pytest.mark.parametrize("step", [0, 1, 7])
def test_two_ranks_read_what_one_reads_with_twice_the_accumulation(step: int) -> None:
    common = {"samples": 37, "seed": 3, "step": step, "micro_batch": 3}
    one = step_indices(**common, rank=0, ranks=1, accumulation=4)
    two = [step_indices(**common, rank=rank, ranks=2, accumulation=2) for rank in (0, 1)]
    # Micro-batch by micro-batch: the ranks take turns.
    assert one == [two[0][0], two[1][0], two[0][1], two[1][1]]


def test_passes_and_seeds_differ_and_repeat() -> None:
    def one_pass(seed: int, step: int) -> list[int]:
        return flat(
            step_indices(samples=24, seed=seed, step=step, rank=0, ranks=1, micro_batch=24, accumulation=1)
        )

    first = one_pass(0, 0)
    assert one_pass(0, 0) == first
    assert one_pass(0, 1) != first and one_pass(1, 0) != first and first != sorted(first)


def test_the_papers_steps() -> None:
    """9M samples in stages 1 and 2, 6M in stage 3; micro-batches 4 / 2 / 4, accumulation 16, 256 devices."""
    paper = {"epochs": 1.0, "ranks": 256, "accumulation": 16}
    found = [
        step_count(samples=samples, micro_batch=micro_batch, **paper)
        for samples, micro_batch in ((9_000_000, 4), (9_000_000, 2), (6_000_000, 4))
    ]
    for steps, stated in zip(found, (549, 1_099, 366), strict=True):
        assert abs(steps - stated) <= 1


def test_a_run_has_at_least_one_step() -> None:
    assert step_count(samples=3, epochs=0.5, ranks=1, micro_batch=4, accumulation=16) == 1
    assert step_count(samples=64, epochs=2.5, ranks=2, micro_batch=4, accumulation=2) == 10


def steps_of(
    taken: range, *, ranks: int = 1, micro_batch: int, accumulation: int, **common: Any
) -> list[int]:
    """Everything that all ranks read in the steps `taken`, in the order of the global positions."""
    read = []
    for step in taken:
        by_rank = [
            step_indices(
                step=step,
                rank=rank,
                ranks=ranks,
                micro_batch=micro_batch,
                accumulation=accumulation,
                **common,
            )
            for rank in range(ranks)
        ]
        read += [index for micro in range(accumulation) for rows in by_rank for index in rows[micro]]
    return read


parts_of = st.lists(
    st.builds(Part, samples=st.integers(1, 25), weight=st.sampled_from((0.25, 0.5, 1.0, 1.5, 2.0, 3.7))),
    min_size=1,
    max_size=4,
).filter(epoch_size)


@settings(max_examples=60, deadline=None)
@given(parts=parts_of, seed=st.integers(0, 3))
def test_weights_say_how_often_an_epoch_has_a_sample(parts: list[Part], seed: int) -> None:
    size, epochs = epoch_size(parts), 4
    assert step_count(samples=parts, epochs=epochs, ranks=1, micro_batch=1, accumulation=1) == size * epochs
    read = steps_of(range(epochs), samples=parts, seed=seed, micro_batch=size, accumulation=1)
    start = 0
    for part in parts:
        own = range(start, start + part.samples)
        for epoch in range(epochs):
            counts = Counter(index for index in read[epoch * size : (epoch + 1) * size] if index in own)
            assert counts.total() == part.drawn
            assert {counts[index] for index in own} <= {part.whole, part.whole + 1}
        # Over the epochs the shares take turns: no sample is more than once behind another.
        counts = Counter(index for index in read if index in own)
        assert max(counts[index] for index in own) - min(counts[index] for index in own) <= 1
        start += part.samples


def test_a_half_is_another_half_in_the_next_epoch() -> None:
    parts = [Part(samples=10, weight=0.5), Part(samples=4)]
    first, second = (
        set(steps_of(range(epoch, epoch + 1), samples=parts, seed=0, micro_batch=9, accumulation=1))
        for epoch in (0, 1)
    )
    assert first & second == {10, 11, 12, 13} and first | second == set(range(14))


def test_parts_of_weight_one_are_read_like_one_set() -> None:
    common = {"seed": 5, "micro_batch": 4, "accumulation": 2}
    one = steps_of(range(6), samples=23, **common)
    assert one == steps_of(range(6), samples=[Part(samples=20), Part(samples=3)], **common)


@settings(max_examples=80, deadline=None)
@given(
    samples=st.integers(1, 60),
    seed=st.integers(0, 3),
    split=st.sampled_from(((1, 4, 3), (2, 3, 2), (3, 2, 2), (4, 3, 1), (6, 1, 2), (12, 1, 1))),
    window=st.integers(1, 4),
    steps=st.integers(1, 9),
)
def test_buckets_keep_windows_and_do_not_depend_on_ranks(
    samples: int, seed: int, split: tuple[int, int, int], window: int, steps: int
) -> None:
    """Twelve samples a step, however many ranks: (ranks, micro-batch, accumulation)."""
    lengths = np.random.default_rng(seed).integers(1, 100, samples)
    plain = {"samples": samples, "seed": seed}
    sorted_by = plain | {"lengths": lengths, "window": window, "steps": steps}
    ranks, micro_batch, accumulation = split
    shape = {"ranks": ranks, "micro_batch": micro_batch, "accumulation": accumulation}
    read = steps_of(range(steps), **sorted_by, **shape)
    # Any step on its own, as after a resume, and with one rank: the same samples in the same order.
    for step in range(steps):
        alone = steps_of(range(step, step + 1), **sorted_by, micro_batch=4, accumulation=3)
        assert alone == read[12 * step : 12 * step + 12]
        assert list(lengths[alone]) == sorted(lengths[alone])
    unsorted = steps_of(range(steps), **plain, **shape)
    for first in range(0, len(read), 12 * window):
        assert Counter(read[first : first + 12 * window]) == Counter(unsorted[first : first + 12 * window])


def test_buckets_pad_less_and_leave_steps_alike() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 4096).astype(int)
    common = {"samples": 4096, "seed": 0, "micro_batch": 4, "accumulation": 16}

    def padded(read: list[int]) -> float:
        rows = lengths[np.array(read).reshape(-1, 4)]
        return 1 - rows.sum() / (rows.max(1) * 4).sum()

    plain = steps_of(range(64), **common)
    bucketed = steps_of(range(64), **common, lengths=lengths, window=16, steps=64)
    assert sorted(plain) == sorted(bucketed) == list(range(4096))
    assert padded(plain) > 0.4 and padded(bucketed) < 0.1
    # A step is no run of short samples or of long ones.
    means = lengths[np.array(bucketed).reshape(64, 64)].mean(1)
    assert means.std() < 0.5 * lengths.std()
    assert len({tuple(bucketed[k * 64 : k * 64 + 64]) for k in range(64)}) == 64


def test_a_window_needs_lengths_and_the_end() -> None:
    common = {
        "samples": 8,
        "seed": 0,
        "rank": 0,
        "ranks": 1,
        "micro_batch": 2,
        "accumulation": 1,
        "window": 2,
    }
    with pytest.raises(ValueError, match="a window needs lengths"):
        step_indices(**common, step=0, steps=4)
    with pytest.raises(ValueError, match="a window needs lengths"):
        step_indices(**common, step=4, steps=4, lengths=np.ones(8))


def test_nine_million_samples_take_moments() -> None:
    """The order of the paper's stage 1 on one of its 256 ranks, in the middle of the run."""
    started = time.perf_counter()
    parts = [Part(samples=3_000_000), Part(samples=6_000_000)]
    common = {"samples": parts, "seed": 0, "ranks": 256, "micro_batch": 4, "accumulation": 16}
    rows = [step_indices(**common, step=step, rank=200) for step in range(300, 310)]
    assert len({index for step in rows for index in flat(step)}) == 640
    assert time.perf_counter() - started < 10
