"""The weights of a model folder by the names that the model gives them, read one at a time.

Files are mapped into memory and let go after each tensor, so reading a checkpoint of any size takes the
memory of its largest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genrecal.core.errors import ModelError
from genrecal.core.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class CheckpointWeights:
    """The tensors of a folder that `save_pretrained` wrote.

    Args:
        folder: with safetensors files, or with pickled ones as older transformers wrote them.
        renaming: pattern -> replacement from names on disk to names in the model; transformers keeps some
            families' older names on disk, and a model class has them as `_checkpoint_conversion_mapping`.

    Raises:
        ModelError: there are no weights, or a file is damaged.
    """

    def __init__(self, folder: Path, renaming: Mapping[str, str]) -> None:
        self.folder = folder
        self._pickled: dict[str, Tensor] = {}
        self._files: dict[str, tuple[Path, str]] = {}
        paths = weight_files(folder)
        for path in paths:
            for name in self._names(path):
                self._files[_renamed(name, renaming)] = (path, name)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def read(self, name: str) -> Tensor:
        """A tensor as it is on disk; its file stays mapped as long as the tensor lives."""
        path, stored = self._files[name]
        if path.suffix == ".bin":
            return self._pickled[stored]
        with safe_open(path, "pt") as file:
            return file.get_tensor(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        path, stored = self._files[name]
        if path.suffix == ".bin":
            return tuple(self._pickled[stored].shape)
        with safe_open(path, "pt") as file:
            return tuple(file.get_slice(stored).get_shape())

    def _names(self, path: Path) -> list[str]:
        try:
            if path.suffix == ".bin":
                found: dict[str, Tensor] = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
                self._pickled |= found
                return list(found)
            with safe_open(path, "pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())[:200]
            raise ModelError(f"holds no readable weights ({line})", where=path) from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: what the index names, else the files themselves.

    Raises:
        ModelError: there are none, or the index names one that is missing.
    """
    if (folder / INDEX).is_file():
        index: Any = read_json(folder / INDEX)
        paths = [folder / name for name in sorted(set(index["weight_map"].values()))]
    elif (folder / SINGLE).is_file():
        paths = [folder / SINGLE]
    else:
        paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not paths:
        raise ModelError("holds no weights (*.safetensors or *.bin)", where=folder)
    for path in paths:
        if not path.is_file():
            raise ModelError(f"lacks the file '{path.name}', which its index names", where=folder)
    return paths


def _renamed(name: str, renaming: Mapping[str, str]) -> str:
    for pattern, replacement in renaming.items():
        found, count = re.subn(pattern, replacement, name)
        if count:
            return found
    return name
