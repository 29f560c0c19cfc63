"""Three-dimensional positions against transformers' get_rope_index."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.positions import rope_positions
from genrecal.core.errors import DataError

MERGE = 2
# Text stretches before, between and after images, and each image's grid in patches.
LAYOUTS = {
    "text only": ([7], []),
    "image first": ([0, 5], [(1, 4, 6)]),
    "image last": ([5, 0], [(1, 8, 2)]),
    "image alone": ([0, 0], [(1, 2, 2)]),
    "two images": ([3, 4, 6], [(1, 4, 6), (1, 10, 4)]),
    "two images side by side": ([3, 0, 2], [(1, 2, 8), (1, 6, 6)]),
    "a clip": ([2, 3], [(3, 4, 2)]),
    "five images": ([1, 2, 0, 9, 1, 4], [(1, 2, 2), (1, 20, 2), (1, 2, 20), (1, 6, 8), (1, 4, 4)]),
}


def tokens(stretches: list[int], grids: list[tuple[int, int, int]], config: object) -> np.ndarray:
    """Ids with each image between its start and end tokens, as the processor writes them."""
    ids: list[int] = []
    for place, stretch in enumerate(stretches):
        ids += [9] * stretch
        if place < len(grids):
            count = int(np.prod(grids[place])) // MERGE**2
            ids += [
                config.vision_start_token_id,
                *[config.image_token_id] * count,
                config.vision_end_token_id,
            ]
    return np.array(ids, dtype=np.int64)


def compare(student: SimpleNamespace, stretches: list[int], grids: list[tuple[int, int, int]]) -> None:
    config = student.model.config
    ids_S = tokens(stretches, grids, config)
    grid_I3 = np.array(grids, dtype=np.int64).reshape(-1, 3)
    expected, delta = student.model.model.get_rope_index(
        torch.from_numpy(ids_S)[None], image_grid_thw=torch.from_numpy(grid_I3) if grids else None
    )
    found = rope_positions(ids_S, grid_I3, image_token=config.image_token_id, merge=MERGE)
    assert np.array_equal(found.ids_AS, expected[:, 0].numpy())
    assert found.delta == int(delta)
    following = found.next(len(ids_S), 3)
    assert np.array_equal(following, np.tile(expected.max().item() + np.arange(1, 4), (3, 1)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_positions_equal_the_reference(student: SimpleNamespace, name: str) -> None:
    compare(student, *LAYOUTS[name])


side = st.integers(1, 6).map(lambda blocks: blocks * MERGE)
grid = st.tuples(st.integers(1, 3), side, side)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(grids=st.lists(grid, max_size=4), data=st.data())
def test_any_layout_equals_the_reference(
    student: SimpleNamespace, grids: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    count = len(grids) + 1
    stretches = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    compare(student, stretches if grids or stretches[0] else [1], grids)


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([9, 5, 5, 5, 9], [(1, 4, 4)], "does not hold the 4 tokens"),
        ([9, 5, 5], [(1, 4, 4)], "does not hold the 4 tokens"),
        ([9, 9], [(1, 2, 2)], "does not hold the 1 tokens"),
        ([9, 5, 9, 5], [(1, 2, 2)], "more image tokens than"),
    ],
)
def test_tokens_that_are_not_the_grids(ids: list[int], grids: list[tuple], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rope_positions(np.array(ids), np.array(grids), image_token=5, merge=MERGE)
