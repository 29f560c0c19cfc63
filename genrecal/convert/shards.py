"""Safetensors shards with an index, written as the tensors come."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from genrecal.convert.source import INDEX
from genrecal.core.files import write_json


class ShardWriter:
    """Collects tensors until a shard is full; memory holds one shard and its serialized bytes."""

    def __init__(self, folder: Path, *, total_bytes: int, shard_bytes: int) -> None:
        """Write to `folder`.

        Args:
            folder: an existing folder.
            total_bytes: of all tensors, for the index.
            shard_bytes: a shard's size; a larger tensor gets a shard of its own.
        """
        self.folder, self.total_bytes, self.shard_bytes = folder, total_bytes, shard_bytes
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._names: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; a view is copied, so that its source can go."""
        if self._bytes and self._bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        self._bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, give the shards their final names, and write the index."""
        if self._tensors:
            self._flush()
        weight_map = {}
        for number, names in enumerate(self._names, 1):
            name = f"model-{number:05d}-of-{len(self._names):05d}.safetensors"
            self._path(number).rename(self.folder / name)
            weight_map |= dict.fromkeys(names, name)
        write_json(
            self.folder / INDEX, {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        )

    def _flush(self) -> None:
        self._names.append(list(self._tensors))
        path = self._path(len(self._names))
        save_file(self._tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)
        self._tensors, self._bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.safetensors"
