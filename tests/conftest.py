"""What every test shares: one thread, no model hub, the CPU, and the two tiny VLMs with their data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch and deepspeed are imported anywhere; subprocesses inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Where `make setup` compiled DeepSpeed's communication operator, with the ninja that it used.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])

import pytest

from tests.families import NAMES, ReadFamily, read_family
from tests.tiny import TinyData, TinyPair, write_data, write_pair


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """Folders of the tiny teacher and student; tests only read them."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Thirty conversations with images; tests only read them."""
    return write_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny VLM of every family; tests only read them."""
    from tests.tiny_families import write_family

    root = tmp_path_factory.mktemp("families")
    return {name: write_family(name, root / name) for name in NAMES}


@pytest.fixture(scope="session", params=NAMES)
def family(request: pytest.FixtureRequest, family_folders: dict[str, Path]) -> ReadFamily:
    """Each family in turn, with the samples as it reads them."""
    return read_family(request.param, family_folders[request.param])
