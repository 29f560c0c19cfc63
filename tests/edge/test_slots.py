"""Which slot a prompt takes over, how far, and what is dropped; and the buffers below."""

from __future__ import annotations

import numpy as np
import pytest

from edge.cache import STEP, KeyValues, Layout, mask_of
from edge.slots import WORTHWHILE, Slots, Span

LAYOUT = Layout(
    past=("past_key_values.0.key", "past_key_values.0.value"),
    present=("present.0.key", "present.0.value"),
    heads=(2, 2),
    channels=(4, 4),
    dtype=np.float32,
    memory="cpu",
)
ONE = KeyValues(LAYOUT, 1, STEP).nbytes


def prompt(length: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int64)


def kept(slots: Slots, tokens: np.ndarray, spans: tuple[Span, ...] = ()) -> KeyValues:
    """Answer a prompt: its tokens are all run, and the slot comes back."""
    slot, _ = slots.take(tokens, spans, len(tokens))
    slot.cache.lengths[0] = len(tokens)
    slots.give_back(slot, tokens, spans)
    return slot.cache


def test_the_longest_beginning_is_taken_over() -> None:
    slots = Slots(LAYOUT, capacity_bytes=10 * ONE)
    kept(slots, prompt(30))
    longest = kept(slots, np.concatenate([prompt(20), prompt(20, 500)]))
    asked = np.concatenate([prompt(20), prompt(15, 500), prompt(9, 900)])
    slot, shared = slots.take(asked, (), 50)
    assert shared == 35 and slot.cache is longest and slot.cache.lengths == [35]
    assert slots.hits == 2 and slots.reused_tokens == 20 + 35


def test_the_last_token_is_left_to_run() -> None:
    slots = Slots(LAYOUT, capacity_bytes=10 * ONE)
    kept(slots, prompt(40))
    assert slots.take(prompt(40), (), 50)[1] == 39
    kept(slots, prompt(40))
    assert slots.take(prompt(30), (), 50)[1] == 29


def test_a_short_beginning_is_not_worth_it() -> None:
    slots = Slots(LAYOUT, capacity_bytes=10 * ONE)
    first = kept(slots, prompt(40))
    asked = np.concatenate([prompt(WORTHWHILE - 1), prompt(30, 700)])
    slot, shared = slots.take(asked, (), 60)
    assert shared == 0 and slot.cache is not first


def test_a_slot_that_would_lose_most_is_copied() -> None:
    slots = Slots(LAYOUT, capacity_bytes=10 * ONE)
    long = kept(slots, prompt(200))
    for number, value in enumerate(long._values):
        long._values[number] = long._new(np.full(value.shape(), number + 1, np.float32))
    asked = np.concatenate([prompt(50), prompt(20, 700)])
    slot, shared = slots.take(asked, (), 90)
    assert shared == 50 and slot.cache is not long and slot.cache.lengths == [50]
    for number, value in enumerate(slot.cache._values):
        assert (value.numpy()[:, :, :50] == number + 1).all() and (value.numpy()[:, :, 50:] == 0).all()
    slots.give_back(slot, asked, ())
    assert slots.take(prompt(200), (), 210)[0].cache is long


@pytest.mark.parametrize(
    ("before", "now", "shared"),
    [
        ((), (), 60),
        ((Span(start=10, digest=b"a"),), (Span(start=10, digest=b"a"),), 60),
        ((Span(start=30, digest=b"a"),), (Span(start=30, digest=b"b"),), 30),
        ((Span(start=30, digest=b"a"),), (Span(start=40, digest=b"a"),), 30),
        ((), (Span(start=45, digest=b"a"),), 45),
        ((Span(start=20, digest=b"a"), Span(start=50, digest=b"b")), (Span(start=20, digest=b"a"),), 50),
        ((Span(start=20, digest=b"a"),), (Span(start=20, digest=b"a"), Span(start=90, digest=b"b")), 60),
    ],
)
def test_the_same_ids_of_another_image_are_not_shared(
    before: tuple[Span, ...], now: tuple[Span, ...], shared: int
) -> None:
    slots = Slots(LAYOUT, capacity_bytes=10 * ONE)
    kept(slots, prompt(60), before)
    assert slots.take(prompt(100), now, 100)[1] == shared


def test_what_was_not_run_is_not_kept() -> None:
    """An answer that was broken off in the middle of its prompt."""
    slots = Slots(LAYOUT, capacity_bytes=10 * ONE)
    slot, _ = slots.take(prompt(60), (Span(start=50, digest=b"a"),), 60)
    slot.cache.lengths[0] = 40
    slots.give_back(slot, prompt(60), (Span(start=50, digest=b"a"),))
    assert slots.take(prompt(60), (Span(start=50, digest=b"b"),), 60)[1] == 40


def test_the_least_recently_used_goes_first() -> None:
    slots = Slots(LAYOUT, capacity_bytes=3 * ONE)
    for first in (0, 1000, 2000):
        kept(slots, prompt(40, first))
    kept(slots, prompt(40, 0))
    kept(slots, prompt(40, 3000))
    assert slots.held_bytes == 3 * ONE
    # Of four prompts, the one that was asked longest ago is gone.
    taken = {first: slots.take(prompt(40, first), (), 0)[1] for first in (0, 2000, 3000, 1000)}
    assert taken == {0: 39, 2000: 39, 3000: 39, 1000: 0}


def test_nothing_is_kept_without_room_for_it() -> None:
    slots = Slots(LAYOUT, capacity_bytes=0)
    kept(slots, prompt(40))
    assert slots.held_bytes == 0 and slots.take(prompt(40), (), 40)[1] == 0


def test_buffers_grow_and_keep_what_they_hold() -> None:
    cache = KeyValues(LAYOUT, 2, 10)
    assert cache.places == STEP and cache.nbytes == 2 * STEP * LAYOUT.token_bytes
    filled = [np.random.default_rng(7).random(value.shape(), np.float32) for value in cache._values]
    cache._values = [cache._new(one.copy()) for one in filled]
    cache.lengths = [STEP, 7]
    cache.reserve(STEP)
    assert cache.places == STEP
    cache.reserve(STEP + 1)
    assert cache.places == 2 * STEP
    for value, one in zip(cache._values, filled, strict=True):
        assert np.array_equal(value.numpy()[:, :, :STEP], one)


def test_the_mask_counts_each_rows_tokens() -> None:
    assert mask_of([3, 1]).tolist() == [[1, 1, 1], [1, 0, 0]] and mask_of([2]).dtype == np.int64
