"""Sees every operation of torch: what it computes, what it moves, and what lives between two of them.

    operation on shapes ─┬─> FLOPs      torch's own count of products, convolutions and attention
                         ├─> bytes      read and written; views move none
                         └─> lifetimes  of the storages that it makes: their sum, and its largest value

Weights and features are shapes alone (shapes.py); token ids, masks and positions have numbers, so that code
which asks how many places a mask has gets its answer.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

aten = torch.ops.aten
# Attention without its matrix of scores: what torch takes on a CPU, and the same to a GPU's fused kernels.
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
INDEXING = (aten.index, aten.index_put, aten.index_put_)
UNWRITTEN = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.detach)


class Operation(NamedTuple):
    """One call of torch; a view moves and makes nothing."""

    flops: float
    moved: int  # bytes read and written
    made: int  # bytes of new storages


class Recorder(TorchDispatchMode):
    """While it is open, books every operation under the part that `part` or a hook has named last."""

    def __init__(self, first: str) -> None:
        """Start with the part `first`."""
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.operations: list[Operation] = []
        self.phases: dict[str, dict[str, int]] = {}  # what lived at most while a part ran, by its maker
        self._peaks: Counter[str] = Counter()
        self._live: Counter[str] = Counter()
        self._total = 0
        self._parts = [first]
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, what is done and made is booked under `name`."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    def enter(self, name: str) -> Callable[..., None]:
        """A hook for the start of a module."""
        return lambda *_: self._parts.append(name)

    def leave(self, *_: Any) -> None:
        """A hook for its end."""
        self._parts.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet, hidden = kwargs or {}, func._overloadpacket, 0
        if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
            return 0  # a figure that is only looked at
        if packet in INDEXING and isinstance(args[0], FakeTensor):
            args, hidden = _places(args)
        given = _tensors((args, kwargs))
        # Weights and the batch were there before: a view of theirs is nothing new.
        self._known.update(tensor.untyped_storage() for tensor in given)
        made = func(*args, **kwargs)
        results = _tensors(made)
        flops = float(FLOPS[packet](*args, **kwargs, out_val=made)) if packet in FLOPS else 0.0
        self.flops[self._parts[-1]] += flops  # type: ignore[assignment]
        made_bytes = hidden + sum(map(self._follow, results))
        moved = 0 if _is_view(func) else hidden + sum(map(_extent, (*given, *results)))
        self.operations.append(Operation(flops=flops, moved=moved, made=made_bytes))
        self._mark(hidden)
        return made

    def _follow(self, tensor: torch.Tensor) -> int:
        """Count the tensor's storage for as long as it lives; its bytes, if it is a new one."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return 0
        self._known.add(storage)
        part, size = self._parts[-1], storage.nbytes()
        self._live[part] += size
        self._total += size
        weakref.finalize(storage, self._forget, part, size)
        return size

    def _forget(self, part: str, size: int) -> None:
        self._live[part] -= size
        self._total -= size

    def _mark(self, hidden: int) -> None:
        """Note the largest sum of the part that runs; `hidden` bytes lived within the operation alone."""
        phase = self._parts[-1]
        if self._total + hidden > self._peaks[phase]:
            self._peaks[phase] = self._total + hidden
            lives = {part: size for part, size in self._live.items() if size}
            self.phases[phase] = lives | ({phase: lives.get(phase, 0) + hidden} if hidden else {})


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, _every_head(key, query), _every_head(value, query))


def _attention_backward_flops(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, _every_head(key, query), _every_head(value, query))


def _every_head(shape: torch.Size, query: torch.Size) -> torch.Size:
    """The shape of keys or values as if every head of the query had its own."""
    return torch.Size([shape[0], query[1], *shape[2:]])


# By shapes, as torch's own counters are.
ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    ATTENTION: _attention_flops,
    ATTENTION_BACKWARD: _attention_backward_flops,
}
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{packet: shape_wrapper(count) for packet, count in ATTENTION_FLOPS.items()},
}


def _places(args: Any) -> tuple[Any, int]:
    """Masks among the indices as that many places, and the bytes of the list that torch makes of a mask."""
    tensor, indices, *rest = args
    places: list[torch.Tensor | None] = []
    hidden = 0
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            count = _true(index)
            places += [torch.zeros(1, dtype=torch.int64).expand(count)] * index.ndim
            hidden += count * index.ndim * torch.int64.itemsize
        else:
            places.append(index)
    return (tensor, places, *rest), hidden


def _true(mask: torch.Tensor) -> int:
    """How many entries are true; an expanded dimension is counted once and multiplied."""
    times = 1
    for dimension in range(mask.ndim):
        if mask.stride(dimension) == 0:
            times *= mask.shape[dimension]
            mask = mask.narrow(dimension, 0, min(1, mask.shape[dimension]))
    return int(mask.count_nonzero()) * times


def _is_view(func: Any) -> bool:
    return func._overloadpacket in UNWRITTEN or any(
        result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns
    )


def _extent(tensor: torch.Tensor) -> int:
    """Bytes that reading the tensor touches: of an expanded one once."""
    used = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        used *= size if stride else 1
    return used * tensor.element_size()
