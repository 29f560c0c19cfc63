"""Each tiny checkpoint, converted once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.convert.reference import NAMES, Reference, read_reference

# Small enough that every tiny checkpoint becomes several shards.
SHARD_BYTES = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A converted folder and the reference of its source."""

    reference: Reference
    folder: Path

    def processor(self) -> Any:
        from genrecal.models.processors import load_processor

        return load_processor(self.folder)

    def model(self) -> Any:
        """In float32, as the references; a new one each time, as rotary tables remember long sequences."""
        import torch

        from genrecal.models.processors import load_model

        return load_model(self.folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def converted_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    from genrecal.convert.checkpoint import convert

    root = tmp_path_factory.mktemp("converted")
    found = {}
    for name in NAMES:
        reference = read_reference(name)
        assert convert(reference.source, root / name, shard_bytes=SHARD_BYTES)
        found[name] = Converted(reference=reference, folder=root / name)
    return found


@pytest.fixture(scope="session", params=NAMES)
def converted(request: pytest.FixtureRequest, converted_folders: dict[str, Converted]) -> Converted:
    return converted_folders[request.param]


@pytest.fixture(scope="session")
def nvlm(converted_folders: dict[str, Converted]) -> Converted:
    return converted_folders["nvlm_d"]
