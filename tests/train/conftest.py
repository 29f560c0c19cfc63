"""Runs through DeepSpeed cost seconds each: they are made once and shared by the tests that look at them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from genrecal.train.stages import STAGES
from tests.kin import Kin, write_kin
from tests.tiny import TinyData, TinyPair, write_data
from tests.train.method_runs import SAMPLES, merged, method_configs, two_teachers

ROOT = Path(__file__).parents[2]
DRIVE = [sys.executable, "-m", "tests.train.drive"]
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run and what it printed."""

    folder: Path
    printed: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def steps(self, stage: str) -> list[dict[str, Any]]:
        return [row for row in self.metrics if row["stage"] == stage]


def environment(**extra: str) -> dict[str, str]:
    """A subprocess sees this repository, no GPU, and no launcher's variables but those given."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return kept | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "400", **extra}


def as_one_rank() -> dict[str, str]:
    """What torchrun would set for a single process: it then trains itself and starts none."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    return environment(**ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def drive(
    configs: list[Path], env: dict[str, str], *, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DRIVE, *map(str, configs)], env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )


CARD = "README.md"  # the student's model card names its run


def folder_hash(folder: Path, *, without: str | None = None) -> str:
    """Of every file's name and bytes, but those of the name `without`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != without):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """This process is a process group of its own, for what asks all ranks."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Kin:
    """Folders of students that are related to the tiny teacher; tests only read them."""
    return write_kin(tmp_path_factory.mktemp("kin"))


WriteConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def write_config(
    tiny_pair: TinyPair, tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory
) -> WriteConfig:
    """Write NAME.yaml for a run in the folder NAME beside it; keywords and `changes` set single settings."""
    root = tmp_path_factory.mktemp("runs")

    def write(
        name: str,
        *,
        method: str = "genrecal",
        data: Path = tiny_data.path,
        workers: int = 0,
        ranks: int = 1,
        zero_stage: int = 3,
        gradient_checkpointing: bool = False,
        micro_batch: int = 4,
        accumulation: int = 2,
        dropout: float = 0.0,
        precision: str = "fp32",
        changes: dict[str, Any] | None = None,
    ) -> Path:
        stage = {
            "micro_batch": micro_batch,
            "accumulation": accumulation,
            "lr_start": 1e-2,  # large, so that a wrong step shows in the next losses
            "lr_end": 1e-3,
        }
        config = {
            "method": method,
            "student": str(tiny_pair.student),
            "teacher": str(tiny_pair.teacher),
            "output": str(root / name),
            "data": {"sources": [{"path": str(data)}], "workers": workers},
            "lora": {"rank": 4, "alpha": 4, "dropout": dropout},
            "engine": {
                "ranks": ranks,
                "zero_stage": zero_stage,
                "precision": precision,
                "gradient_checkpointing": gradient_checkpointing,
                "probe_every": 2,
                "save_every": 2,
            },
            # The pair's weights are random: to a check that stops such a teacher, it is broken.
            "preflight": {"mode": "warn", "samples": 2},
            "stages": {name: stage for name in STAGES} | {"distill": {**stage, "epochs": 2.0}},
        }
        config = merged(config, changes or {})
        config = {key: value for key, value in config.items() if value is not None}
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pair_hashes(tiny_pair: TinyPair) -> dict[str, str]:
    """The model folders as they are before any run."""
    return {side: folder_hash(getattr(tiny_pair, side)) for side in ("student", "teacher")}


@pytest.fixture(scope="session")
def runs(write_config: WriteConfig, pair_hashes: dict[str, str]) -> dict[str, Run]:
    """One process, one rank, one run after the other; each differs from `plain` in one thing."""
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "zero_0": {"zero_stage": 0},
        "checkpointing": {"gradient_checkpointing": True},
        "one_micro_batch": {"micro_batch": 8, "accumulation": 1},
        "dropout": {"dropout": 0.1, "gradient_checkpointing": True},
        "sft": {"method": "sft"},
        "bf16": {"precision": "bf16", "gradient_checkpointing": True, "micro_batch": 1, "accumulation": 8},
    }
    configs = {name: write_config(name, **settings) for name, settings in variants.items()}
    done = drive(list(configs.values()), as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Run(folder=path.with_suffix(""), printed=done.stdout) for name, path in configs.items()}


@pytest.fixture(scope="session")
def method_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Two steps for the runs of every method."""
    return write_data(tmp_path_factory.mktemp("methods") / "data", samples=SAMPLES)


@pytest.fixture(scope="session")
def teachers(tiny_pair: TinyPair, kin: Kin) -> dict[str, Any]:
    """Settings of a run with two teachers."""
    return two_teachers(tiny_pair, kin)


@pytest.fixture(scope="session")
def method_runs(
    write_config: WriteConfig, method_data: TinyData, kin: Kin, teachers: dict[str, Any]
) -> dict[str, Run]:
    """Each method, and its variants, one after the other in one process."""
    configs = method_configs(write_config, method_data, kin, teachers)
    done = drive(list(configs.values()), as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Run(folder=path.with_suffix(""), printed=done.stdout) for name, path in configs.items()}


def stage_folder(run: Run, number: int) -> Path:
    """What the stage with this number left."""
    (folder,) = (run.folder / "stages").glob(f"{number}-*")
    return folder


def assert_same_steps(one: Run, other: Run) -> None:
    """The same losses, counts and norms, step by step."""
    mine, theirs = one.metrics, other.metrics
    assert len(mine) == len(theirs) >= 4
    for row, same in zip(mine, theirs, strict=True):
        assert (row["stage"], row["step"], row["counts"]) == (same["stage"], same["step"], same["counts"])
        assert row["loss"] == pytest.approx(same["loss"], abs=1e-4)
        assert row["terms"] == pytest.approx(same["terms"], abs=1e-4)
        if None not in (row["grad_norm"], same["grad_norm"]):
            assert row["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-3)
    assert mine[0]["loss"] != pytest.approx(mine[1]["loss"], abs=1e-2)  # it moves
