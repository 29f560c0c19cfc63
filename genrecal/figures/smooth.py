"""The mean over a moving window, for curves whose every step is noisy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# The window, as a part of the curve.
WINDOW = 0.08


def rolling_mean(values: Sequence[float]) -> list[float]:
    """The mean over the window round each value; at the ends over what of it there is."""
    half = max(0, round(WINDOW * len(values)) // 2)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return ((sums[high] - sums[low]) / (high - low)).tolist()
