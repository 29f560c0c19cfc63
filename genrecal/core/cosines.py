"""Cosines of two tables of features with a row for each pair: with the row's own partner, and with others.

What all pairs share brings any cosine near 1. Centred cosines have the mean over the pairs taken off each
side first. Shapes: N pairs, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCosines:
    """Rows are from the one table, columns from the other; a single pair has no others: NaN."""

    matrix_NN: Array
    diagonal: float  # mean cosine of a pair with itself
    others: float  # mean cosine with other pairs
    centred: tuple[float, float]  # the same two, centred


def pair_cosines(one_ND: Array, other_ND: Array) -> PairCosines:
    """The cosine of every row of the one with every row of the other, and their means."""
    matrix_NN = cosines(one_ND, other_ND)
    diagonal, others = _means(matrix_NN)
    centred = _means(cosines(one_ND - one_ND.mean(0), other_ND - other_ND.mean(0)))
    return PairCosines(matrix_NN=matrix_NN, diagonal=diagonal, others=others, centred=centred)


def cosines(one_ND: Array, other_ND: Array) -> Array:
    """The cosine of every row of the one with every row of the other, [N, N]."""
    return unit_rows(one_ND) @ unit_rows(other_ND).T


def unit_rows(features_ND: Array) -> Array:
    """Every row scaled to length 1."""
    return features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)


def _means(matrix_NN: Array) -> tuple[float, float]:
    """The mean of the diagonal and of the rest."""
    size = len(matrix_NN)
    diagonal = float(np.diagonal(matrix_NN).mean())
    others = (float(matrix_NN.sum()) - diagonal * size) / (size * (size - 1)) if size > 1 else float("nan")
    return diagonal, others
