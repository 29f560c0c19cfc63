"""Who dies, fails or finishes among ranks that only beat."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from genrecal.core.errors import DataError, TrainError
from genrecal.train.heartbeat import Silence, Verdict, of_run, post
from tests.train.conftest import environment

DEAD_AFTER_S = 4

Beating = subprocess.Popen[str]


@pytest.fixture
def store() -> TCPStore:
    """The ranks' store, in this process as in the one that starts ranks."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))


@pytest.fixture
def started() -> Iterator[list[Beating]]:
    ranks: list[Beating] = []
    yield ranks
    for rank in ranks:
        rank.kill()
        rank.wait()


def beat(started: list[Beating], store: TCPStore, *what: str, dead_after_s: float = DEAD_AFTER_S) -> None:
    """Start a rank for each of `what`, and wait until all have begun."""
    for rank, task in enumerate(what):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(what))}
        at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.train.beat", task, str(dead_after_s)],
                env=environment(**ranks, **at, TORCHELASTIC_USE_AGENT_STORE="True"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "started\n"


def ends(process: Beating) -> tuple[int, list[str]]:
    """The exit code, and the lines of errors."""
    _, said = process.communicate(timeout=60)
    return process.returncode, [line for line in said.splitlines() if line.startswith("error:")]


def test_a_rank_that_is_killed_ends_the_others_and_is_named(store: TCPStore, started: list[Beating]) -> None:
    beat(started, store, "wait", "wait", "wait")
    started[1].send_signal(signal.SIGKILL)
    since = time.monotonic()
    (code, said), _, (other, silent) = ends(started[0]), ends(started[1]), ends(started[2])
    assert DEAD_AFTER_S < time.monotonic() - since < 10 * DEAD_AFTER_S
    assert (code, other) == (TrainError.exit_code, TrainError.exit_code)
    (line,) = said + silent
    assert line.startswith(f"error: rank 1 on {os.uname().nodename} gave no sign of life for ")


@pytest.mark.full
def test_a_rank_that_is_stopped_counts_as_dead(store: TCPStore, started: list[Beating]) -> None:
    beat(started, store, "wait", "wait")
    started[0].send_signal(signal.SIGSTOP)
    code, said = ends(started[1])
    assert code == TrainError.exit_code and said[0].startswith("error: rank 0 on ")
    # When it goes on, it reads that it was given up.
    started[0].send_signal(signal.SIGCONT)
    assert ends(started[0])[0] == TrainError.exit_code


def test_a_rank_that_fails_takes_the_others_along_with_its_exit_code(
    store: TCPStore, started: list[Beating]
) -> None:
    beat(started, store, "wait", "fail")
    code, said = ends(started[0])
    assert code == ends(started[1])[0] == DataError.exit_code
    assert len(said) == 1 and said[0].endswith("failed: data.json: is gone") and "rank 1 on" in said[0]


def test_a_rank_that_has_finished_is_not_dead(store: TCPStore, started: list[Beating]) -> None:
    """Nor is one whose main thread holds Python's lock for less than the limit."""
    beat(started, store, "hold", "finish", "hold", dead_after_s=3)
    assert [ends(process) for process in started] == [(0, []), (0, []), (0, [])]


def test_a_rank_leaves_when_the_store_is_gone(started: list[Beating]) -> None:
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    beat(started, host, "wait", "wait", dead_after_s=2)
    del host
    (code, said), (other, _) = ends(started[0]), ends(started[1])
    assert code == other == TrainError.exit_code
    assert len(said) == 1 and said[0].startswith("error: no contact with the other ranks for ")


def test_the_first_verdict_stands(store: TCPStore) -> None:
    run = of_run(store, 0)
    first = post(run, Verdict(rank=1, by=0, said="one", exit_code=3))
    assert (
        first
        == post(run, Verdict(rank=2, by=1, said="two"))
        == Verdict(rank=1, by=0, said="one", exit_code=3)
    )
    assert post(of_run(store, 1), Verdict(rank=2, by=1, said="two")).said == "two"


def test_who_was_held_up_has_not_seen_anyones_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    silence = Silence(longest_look_s=10)
    assert silence.of("1") == 0
    now = 5
    assert silence.of("1") == 5
    now = 1000  # this process stood still
    assert silence.of("1") == 15
    assert silence.of("2") == 0
