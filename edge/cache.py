"""Keys and values of past tokens: one buffer for each input of the decoder, where it also writes.

    buffer [B, heads, P, C]   bound as past and as present: GroupQueryAttention writes new tokens in place

B rows, P places, C channels of a head. A row fills its places from the left, each row at its own pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

STEP = 64
"""Buffers have a multiple of so many places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the decoder's past looks like; every layer's keys and values are alike but for their names."""

    past: tuple[str, ...]
    present: tuple[str, ...]
    heads: tuple[int, ...]
    channels: tuple[int, ...]
    dtype: Any
    memory: str
    """Where the device keeps tensors: cpu or cuda."""

    @property
    def token_bytes(self) -> int:
        """Memory of one token in one row."""
        size = np.dtype(self.dtype).itemsize
        return sum(heads * channels for heads, channels in zip(self.heads, self.channels, strict=True)) * size


def rounded(places: int) -> int:
    """So many places as a buffer has that holds `places`."""
    return -(-places // STEP) * STEP


class KeyValues:
    """The buffers of B rows and how far each row has filled them.

    Args:
        layout: of the decoder.
        rows: B.
        places: P, rounded up.
    """

    def __init__(self, layout: Layout, rows: int, places: int) -> None:
        self.layout, self.rows, self.places = layout, rows, rounded(places)
        self.lengths = [0] * rows
        """Tokens in each row; setting one lower forgets the last ones."""
        self._values = [self._new(self._empty(number)) for number in range(len(layout.past))]
        self._bindings: dict[int | None, onnxruntime.IOBinding] = {}

    @property
    def nbytes(self) -> int:
        return self.rows * self.places * self.layout.token_bytes

    def reserve(self, places: int) -> None:
        """Make room for `places` tokens in a row; what the rows hold is kept."""
        if places <= self.places:
            return
        # Doubled, so that an answer of any length is copied a few times only.
        self.places = rounded(max(places, min(2 * self.places, places + 1024)))
        self._bindings.clear()
        self._copy(self._values, max(self.lengths))

    def beginning(self, length: int, places: int) -> KeyValues:
        """The first `length` tokens of all rows in buffers of their own, with room for `places`."""
        copied = KeyValues(self.layout, self.rows, places)
        copied._copy(self._values, length)
        copied.lengths = [length] * self.rows
        return copied

    def binding(self, session: onnxruntime.InferenceSession, row: int | None = None) -> onnxruntime.IOBinding:
        """Every buffer bound as past and as present: all rows, or one row as a batch of its own.

        A step binds its own inputs besides; the buffers stay bound, as there are dozens of them.
        """
        if row not in self._bindings:
            binding = session.io_binding()
            names = zip(self.layout.past, self.layout.present, self._values, strict=True)
            for past, present, value in names:
                rows, heads, places, channels = value.shape()
                pointer = value.data_ptr()
                if row is not None:
                    pointer += row * heads * places * channels * np.dtype(self.layout.dtype).itemsize
                    rows = 1
                where = (self.layout.memory, 0, self.layout.dtype, [rows, heads, places, channels], pointer)
                binding.bind_input(past, *where)
                binding.bind_output(present, *where)
            self._bindings[row] = binding
        return self._bindings[row]

    def _copy(self, values: list[onnxruntime.OrtValue], length: int) -> None:
        """Buffers of this size that begin with `length` tokens of others, which may be this object's own.

        One after the other, so that a growing cache never takes twice its memory.
        """
        for number, value in enumerate(values):
            array = self._empty(number)
            array[:, :, :length] = value.numpy()[:, :, :length]
            self._values[number] = self._new(array)

    def _empty(self, number: int) -> np.ndarray:
        # Zeros are pages that the system hands out when they are first written to.
        shape = (self.rows, self.layout.heads[number], self.places, self.layout.channels[number])
        return np.zeros(shape, self.layout.dtype)

    def _new(self, array: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.layout.memory, 0)


def mask_of(lengths: Sequence[int]) -> np.ndarray:
    """attention_mask_BT: 1 for the tokens of each row, the last ones of a run included."""
    return (np.arange(max(lengths))[None] < np.array(lengths)[:, None]).astype(np.int64)
