"""Checkpoints: every bit comes back, on any ranks and any ZeRO stage; what is damaged is never loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genrecal.train.checkpoint import shard_rounds
from tests.train.conftest import ROOT, environment

ALL_MODES = "0fp32,1fp32,1bf16,2fp32,2bf16,3fp32,3bf16"
# Gradients are added over the ranks in bf16: rounding differs with their number.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3}


def parts(tasks: str, ranks: int, modes: str, folder: Path) -> str:
    """Run tasks of `checkpoint_parts.py`; returns what was printed."""
    command = [sys.executable, "-m", "tests.train.checkpoint_parts", tasks, str(ranks), modes, str(folder)]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def found(task: str, ranks: int, folder: Path) -> dict[str, Any]:
    return json.loads((folder / f"{task}-{ranks}.json").read_text())


def assert_saved(saved: dict[str, Any]) -> None:
    for name, run in saved.items():
        assert run["same"] and run["after"] == run["resumed"], name
        assert run["after"][-1] < run["after"][0] - 0.1  # it moves


def assert_loaded(loaded: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, run in loaded.items():
        assert run["same_state"], name
        before, precision = name.partition(" in ")[0], name.partition(" in ")[0].rpartition("-")[2]
        assert run["losses"] == pytest.approx(saved[before]["after"], abs=TOLERANCE[precision]), name


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every way of holding a state once, and what the warnings say."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return folder, parts("save,choose,unwritten", 2, "0fp32,1bf16,2fp32,3bf16", folder)


def test_a_resumed_engine_is_the_same_to_the_bit(two_ranks: tuple[Path, str]) -> None:
    assert_saved(found("save", 2, two_ranks[0]))


def test_one_rank_goes_on_with_what_two_have_saved(two_ranks: tuple[Path, str]) -> None:
    parts("load", 1, "0fp32,1bf16,3fp32", two_ranks[0])
    loaded = found("load", 1, two_ranks[0])
    assert len(loaded) == 6
    assert_loaded(loaded, found("save", 2, two_ranks[0]))


@pytest.mark.full
def test_all_zero_stages_and_ranks(tmp_path: Path) -> None:
    parts("save", 3, ALL_MODES, tmp_path)
    parts("save", 1, ALL_MODES, tmp_path)
    parts("load", 2, ALL_MODES, tmp_path)
    saved = found("save", 3, tmp_path) | found("save", 1, tmp_path)
    assert len(saved) == 14
    assert_saved(saved)
    loaded = found("load", 2, tmp_path)
    assert len(loaded) == 2 * (4 * 4 + 3 * 3)
    assert_loaded(loaded, saved)


def test_the_newest_that_is_whole_is_taken(two_ranks: tuple[Path, str]) -> None:
    folder, printed = two_ranks
    choice = found("choose", 2, folder)
    assert choice["none"] == [None, None]
    assert choice["kept"] == ["step-000002", "step-000003", "step-000004"]
    assert choice["all well"] == ["step-000004"] * 2
    assert choice["a bit flipped"] == ["step-000003"] * 2
    assert choice["kept after a resume"] == ["step-000002", "step-000003"]
    assert choice["no manifest"] == ["step-000002"] * 2
    assert choice["half a manifest"] == ["error: holds no checkpoint that can be loaded"] * 2
    warnings = [line for line in printed.splitlines() if line.startswith("warning:")]
    assert any("step-000004 is passed over: file 'shard-" in line and "SHA-256" in line for line in warnings)
    assert any("step-000003 is passed over: its save was cut off" in line for line in warnings)
    assert len(warnings) == 1 + 1 + 2  # by one of the ranks


def test_all_ranks_end_when_one_cannot_write(two_ranks: tuple[Path, str]) -> None:
    run = found("unwritten", 2, two_ranks[0])
    assert run["errors"][0] == run["errors"][1] and "File too large" in run["errors"][0]
    assert run["left"] == ["step-000001"] and run["taken"] == "step-000001"
    assert run["left after it had space"] == ["step-000002"]


def test_ranks_write_equal_shares() -> None:
    sizes = {f"weight-{number}": (number * 7919) % 100 + 1 for number in range(500)}
    rounds = shard_rounds(sizes, ranks=8, limit=1000)
    assert [name for names in rounds for name in names] == list(sizes)
    for names in rounds:
        load = [sum(sizes[name] for name, owner in names.items() if owner == rank) for rank in range(8)]
        assert max(load) <= 1000
        if names is not rounds[-1]:
            assert max(load) - min(load) <= 100
    assert shard_rounds({"table": 5000, "norm": 1}, ranks=1, limit=1000) == [{"table": 0}, {"norm": 0}]
