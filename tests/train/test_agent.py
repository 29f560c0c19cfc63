"""torchrun's agent within `genrecal distill`: how it is called, how it ends, and a node that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed.run import parse_args

from genrecal.core.errors import ConfigError, Requeue, TrainError
from genrecal.train.agent import torchrun_arguments, what_ended
from genrecal.train.cluster import LaunchConfig
from tests.train.conftest import TIMEOUT_S, WriteConfig, environment, free_port
from tests.train.test_interruption import lines

BOUND_S = 120


def test_one_node_needs_no_meeting_point() -> None:
    words = torchrun_arguments(LaunchConfig(), 8, ["a b.yaml", "--set", "seed=1"])
    read = parse_args(words)
    assert (read.nnodes, read.nproc_per_node, read.standalone, read.max_restarts) == ("1", "8", True, 0)
    assert (read.module, read.training_script) == (True, "cli")
    assert read.training_script_args == ["distill", "a b.yaml", "--set", "seed=1"]
    # The two that a run saves after are not torchrun's: it would kill the ranks 30 s later.
    assert read.signals_to_handle == "SIGHUP,SIGQUIT"


def test_several_nodes_meet_where_the_config_says() -> None:
    read = parse_args(
        torchrun_arguments(LaunchConfig(nodes=32, rendezvous="node-1:29500", job="job-7"), 8, ["x"])
    )
    assert (read.nnodes, read.rdzv_backend, read.rdzv_endpoint) == ("32", "c10d", "node-1:29500")
    assert read.rdzv_id == "job-7"
    with pytest.raises(ConfigError, match=r"launch.rendezvous: is missing: 32 nodes"):
        torchrun_arguments(LaunchConfig(nodes=32), 8, ["x"])


@pytest.mark.parametrize(
    ("codes", "first", "asked", "ended"),
    [
        ({0: 75, 1: 75}, 0, True, (0, 75)),
        ({0: 75, 1: 75}, 0, False, (0, 75)),  # the signal came to another node
        ({0: -9, 1: 75}, 1, True, (1, 75)),  # one did not close its trackers in time
        ({0: 3, 1: 75}, 1, False, (0, 3)),  # torchrun told the other to end
        ({0: 75, 1: -9}, 0, False, (1, -9)),
        ({4: -9, 5: -15}, 4, False, (4, -9)),
        ({0: 8, 1: 3}, 1, True, (1, 3)),
    ],
)
def test_what_the_ranks_of_a_node_ended_with(
    codes: dict[int, int], first: int, asked: bool, ended: tuple[int, int]
) -> None:
    assert Requeue.exit_code == 75
    assert what_ended(codes, first, asked=asked) == ended


@pytest.fixture
def nodes(
    write_config: WriteConfig, request: pytest.FixtureRequest
) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """A run on two agents with a rank each, as on two nodes, in the middle of its first stage."""
    path = write_config(
        request.node.name,
        changes={
            "stages": {"recalibrate": {"epochs": 100.0}},
            "launch": {"nodes": 2, "gpus_per_node": 1, "rendezvous": f"localhost:{free_port()}"},
            "engine": {"dead_after_seconds": 10},
        },
    )
    command = [sys.executable, "-m", "cli", "distill", str(path), "--launch", "torchrun"]
    agents = [
        subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while lines(path.with_suffix(""), "recalibrate") < 2:
            assert all(agent.poll() is None for agent in agents) and time.monotonic() < deadline
            time.sleep(0.05)
        yield path, agents
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def rank_of(agent: subprocess.Popen[str]) -> psutil.Process:
    (rank,) = psutil.Process(agent.pid).children()
    return rank


@pytest.mark.full
def test_a_node_that_dies_ends_the_other(nodes: tuple[Path, list[subprocess.Popen[str]]]) -> None:
    """Either may have the store; the one that does not is killed, with its agent."""
    _, agents = nodes
    ranks = [rank_of(agent) for agent in agents]
    numbers = [int(rank.environ()["RANK"]) for rank in ranks]
    dead, alive = numbers.index(1), numbers.index(0)
    agents[dead].kill()  # its rank dies with it
    since = time.monotonic()
    _, said = agents[alive].communicate(timeout=BOUND_S)
    assert time.monotonic() - since < BOUND_S
    assert agents[alive].returncode == TrainError.exit_code
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    silent = line.startswith(f"error: rank 1 on {os.uname().nodename} gave no sign of life for ")
    # Where the store died with it, the agent may see that before its rank misses the other one.
    assert silent or "or the one that they meet at is gone" in line
    assert psutil.wait_procs(ranks, timeout=10)[1] == []


@pytest.mark.full
def test_a_node_that_is_asked_to_end_has_all_save(nodes: tuple[Path, list[subprocess.Popen[str]]]) -> None:
    path, agents = nodes
    agents[1].send_signal(signal.SIGTERM)
    for agent in agents:
        _, said = agent.communicate(timeout=BOUND_S)
        assert agent.returncode == Requeue.exit_code, said[-2000:]
    assert list((path.with_suffix("") / "checkpoints").rglob("manifest.json"))
