"""The weights of a model folder by the names that the model gives them, read one at a time.

Files are mapped into memory and let go after each tensor, so reading a checkpoint of any size takes the
memory of its largest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from genrecal.core.errors import ModelError
from genrecal.core.files import read_json
from genrecal.models.pickles import require_safetensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FILES = "*.safetensors"


class CheckpointWeights:
    """The tensors of a folder that `save_pretrained` wrote.

    Args:
        folder: with safetensors files.
        renaming: pattern -> replacement from names on disk to names in the model; transformers keeps some
            families' older names on disk, and a model class has them as `_checkpoint_conversion_mapping`.

    Raises:
        ModelError: there are no weights, or a file is damaged.
    """

    def __init__(self, folder: Path, renaming: Mapping[str, str]) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder):
            for name in _names(path):
                self._files[_renamed(name, renaming)] = (path, name)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def read(self, name: str) -> Tensor:
        """A tensor as it is on disk; its file stays mapped as long as the tensor lives."""
        path, stored = self._files[name]
        with safe_open(path, "pt") as file:
            return file.get_tensor(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        path, stored = self._files[name]
        with safe_open(path, "pt") as file:
            return tuple(file.get_slice(stored).get_shape())


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: what the index names, else the files themselves.

    Raises:
        ModelError: there are none but pickles, or the index names one that is missing or lies elsewhere.
    """
    require_safetensors(folder)
    if (folder / INDEX).is_file():
        index: Any = read_json(folder / INDEX)
        names = sorted(set(index["weight_map"].values()))
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        names = sorted(path.name for path in folder.glob(FILES))
    if not names:
        raise ModelError(f"holds no weights ({FILES})", where=folder)
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"its index names '{name}', which is not in the folder", where=folder)
        if not (folder / name).is_file():
            raise ModelError(f"lacks the file '{name}', which its index names", where=folder)
    return [folder / name for name in names]


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"holds no readable weights ({line})", where=path) from error


def _renamed(name: str, renaming: Mapping[str, str]) -> str:
    for pattern, replacement in renaming.items():
        found, count = re.subn(pattern, replacement, name)
        if count:
            return found
    return name
