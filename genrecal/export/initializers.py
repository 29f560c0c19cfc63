"""A graph's constants, read and written one at a time: what is too large for the graph lies beside it.

Small graphs hold their weights themselves; those of large ones lie beside them as `.onnx_data`, on page
boundaries, where a runtime can map them into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

# Weights of graphs above this go to a file beside them; protobuf itself ends at 2 GB.
INLINE_BYTES = 256 << 20
# What a mapping of Windows begins on; Linux takes a page of 4 KiB.
ALIGNMENT = 1 << 16
# Values of a weight that are in memory at a time.
PIECE_VALUES = 1 << 24


class Initializers:
    """Writes initializers to a model and, where it has one, to the file beside it."""

    def __init__(self, model: ModelProto, beside: BinaryIO | None, location: str) -> None:
        self._model, self._beside, self._location = model, beside, location

    def add(self, name: str, shape: Sequence[int], data_type: int, pieces: Iterable[bytes]) -> None:
        """Add one, whose bytes come in pieces."""
        proto = TensorProto(name=name, dims=shape, data_type=data_type)
        if self._beside is None or tensor_bytes(proto) < ALIGNMENT:
            proto.raw_data = b"".join(pieces)
        else:
            self._beside.write(b"\0" * (-self._beside.tell() % ALIGNMENT))
            start = self._beside.tell()
            for piece in pieces:
                self._beside.write(piece)
            proto.data_location = TensorProto.EXTERNAL
            facts: dict[str, Any] = {
                "location": self._location,
                "offset": start,
                "length": self._beside.tell() - start,
            }
            for key, value in facts.items():
                proto.external_data.add(key=key, value=str(value))
        self._model.graph.initializer.append(proto)

    def add_array(self, name: str, array: NDArray[Any]) -> None:
        self.add(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype), [array.tobytes()])


@contextmanager
def written(model: ModelProto, target: Path, *, outside: bool) -> Iterator[Initializers]:
    """Write `model` to `target` when the block ends, with what was added in it.

    Args:
        model: without the initializers that are to be added.
        target: the `.onnx` file.
        outside: whether large ones go to `<target>_data`.
    """
    data = target.with_name(f"{target.name}_data")
    if not outside:
        yield Initializers(model, None, data.name)
    else:
        with data.open("wb") as stream:
            yield Initializers(model, stream, data.name)
    onnx.save_model(model, target)


def array_of(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """An initializer's values; one that lies outside of its graph, in `folder`, is mapped and not read."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    facts = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(
        folder / facts["location"],
        dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
        mode="r",
        offset=int(facts.get("offset", 0)),
        shape=tuple(tensor.dims),
    )


def copied(tensor: TensorProto, folder: Path) -> Iterator[bytes]:
    """An initializer's bytes, a few rows at a time."""
    array = array_of(tensor, folder)
    rows = array if array.ndim else array[None]
    step = max(1, PIECE_VALUES // max(1, prod(rows.shape[1:])))
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start : start + step]).tobytes()


def lies_outside(model: ModelProto) -> bool:
    """Whether some of a model's initializers lie beside it."""
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)


def tensor_bytes(tensor: TensorProto) -> int:
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4}.get(
        tensor.data_type, 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )
    return int(np.prod(tensor.dims, dtype=np.int64)) * bits // 8


def initializer_bytes(graph: Path) -> int:
    """Bytes of the initializers of a graph, without reading external ones into memory."""
    model = onnx.load(graph, load_external_data=False)
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer)
