"""The order of samples: a pure function of seed, step and rank."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrecal.data.order import step_count, step_indices


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
