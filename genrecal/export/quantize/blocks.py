"""Numbers in blocks, as MatMulNBits stores them.

    weight_KN -> transposed, cut into blocks of B input channels -> codes_NGB (unsigned), scales_NG
    value = (code - 2^(bits-1)) * scale

The code of a block's largest value is -2^(bits-1), for which the scale takes the opposite sign of that value:
so the whole range is used, and the one extreme code lies on the largest value (onnxruntime's rounding, too).
4 bits: two codes a byte, the first one in the lower half.

Shapes: K input channels, N output channels, G = ceil(K / B) blocks; the last one is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrecal.export import initializers

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """Output channels of a weight."""

    codes_NGB: NDArray[np.uint8]
    scales_NG: Array
    """float32 or float16, as they are stored."""


# name, weight_KN, bits, block, type of the scales -> output channels in their order, some at a time
Rounding = Callable[[str, Array, int, int, Any], Iterator[Coded]]


def nearest(name: str, weight_KN: Array, bits: int, block: int, dtype: Any) -> Iterator[Coded]:
    """Every number to its nearest code."""
    inputs, outputs = weight_KN.shape
    step = max(1, initializers.PIECE_VALUES // inputs)
    for start in range(0, outputs, step):
        values_NGB = in_blocks(weight_KN[:, start : start + step], block)
        scales_NG = scales_of(values_NGB, bits).astype(dtype)
        yield Coded(codes_NGB=codes_of(values_NGB, scales_NG, bits), scales_NG=scales_NG)


def in_blocks(weight_KN: Array, block: int) -> NDArray[np.float32]:
    inputs, outputs = weight_KN.shape
    values_NK = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    values_NK[:, :inputs] = weight_KN.T
    return values_NK.reshape(outputs, -1, block)


def scales_of(values_NGB: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    low_NG, high_NG = values_NGB.min(2), values_NGB.max(2)
    extreme_NG = np.where(-low_NG >= high_NG, low_NG, high_NG)
    return extreme_NG / np.float32(-(1 << (bits - 1)))


def codes_of(values_NGB: Array, scales_NG: Array, bits: int) -> NDArray[np.uint8]:
    half = 1 << (bits - 1)
    scales_NG1 = scales_NG.astype(np.float32)[..., None]
    # A block of zeros has no scale.
    inverse_NG1 = np.divide(1, scales_NG1, out=np.zeros_like(scales_NG1), where=scales_NG1 != 0)
    codes_NGB = np.rint(values_NGB * inverse_NG1)
    codes_NGB += half
    return np.clip(codes_NGB, 0, 2 * half - 1, out=codes_NGB).astype(np.uint8)


def values_of(coded: Coded, bits: int, inputs: int) -> NDArray[np.float32]:
    """weight_KN as the kernel sees it."""
    values_NGB = (coded.codes_NGB.astype(np.float32) - (1 << (bits - 1))) * coded.scales_NG.astype(
        np.float32
    )[..., None]
    return values_NGB.reshape(len(values_NGB), -1)[:, :inputs].T


def packed(codes_NGB: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes as they are stored: [N, G, B * bits / 8]."""
    return codes_NGB if bits == 8 else codes_NGB[..., 0::2] | codes_NGB[..., 1::2] << 4


def block_for(inputs: int, block: int, smallest: int) -> int:
    """The block, halved while it would leave part of a block empty."""
    while inputs % block and block > smallest:
        block //= 2
    return block
