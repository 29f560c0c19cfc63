"""How a run is started, and how the process that starts ranks and its ranks end with each other."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError, TrainError
from genrecal.train.launch import distill
from genrecal.train.settings import RunConfig
from tests.train.conftest import DRIVE, TIMEOUT_S, WriteConfig, environment
from tests.train.test_interruption import lines

BOUND_S = 120
Training = subprocess.Popen[str]


def test_what_cannot_be_launched_says_why(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_config("unlaunched"), RunConfig)
    with pytest.raises(ConfigError, match="unknown launch 'k8s'; known are local, torchrun, slurm"):
        distill(config, launch="k8s")
    with pytest.raises(ConfigError, match="--submit: goes with --launch slurm alone"):
        distill(config, launch="torchrun", submit=True)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="'torchrun' starts ranks, but this process is one"):
        distill(config, launch="torchrun")
    assert not config.output.exists()


def ranks_of(process: Training) -> list[psutil.Process]:
    """Its ranks: the children that multiprocessing has spawned to run something."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "--multiprocessing-fork" in child.cmdline()]


@pytest.fixture
def training(write_config: WriteConfig, request: pytest.FixtureRequest) -> Iterator[Training]:
    """A run on two ranks, in the middle of its first stage."""
    changes = {"stages": {"recalibrate": {"epochs": 50.0}}}
    path = write_config(request.node.name, ranks=2, changes=changes)
    process = subprocess.Popen(
        [*DRIVE, str(path)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 2 * TIMEOUT_S
        while lines(path.with_suffix(""), "recalibrate") < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.full
def test_a_killed_rank_ends_a_training_run(training: Training) -> None:
    ranks = ranks_of(training)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    since = time.monotonic()
    _, said = training.communicate(timeout=BOUND_S)
    assert time.monotonic() - since < BOUND_S / 4
    assert training.returncode == TrainError.exit_code
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert line.startswith("error: rank 1 was killed by signal 9.")
    assert "Traceback" not in said
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.full
def test_ranks_end_with_the_process_that_started_them(training: Training) -> None:
    ranks = ranks_of(training)
    training.kill()
    training.communicate()
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
