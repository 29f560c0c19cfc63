"""Signals: noted while steps are taken, the end at any other time, and passed on to the ranks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from genrecal.core.errors import Requeue
from genrecal.train.stopping import INTERRUPTED
from tests.train.conftest import ROOT, environment

# The module without its package, which imports torch.
IMPORT = f"""
import importlib.util, subprocess, sys, time
spec = importlib.util.spec_from_file_location("stopping", {str(ROOT / "genrecal/train/stopping.py")!r})
stopping = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stopping)
"""
STEPPING = (
    IMPORT
    + """
with stopping.listening(), stopping.stepping():
    print("step", flush=True)
    while not stopping.asked():
        time.sleep(0.01)
    print(stopping.asked(), flush=True)
    if sys.argv[1] == "sleep":
        time.sleep(60)
    if sys.argv[1] == "leave":
        sys.exit("saved")
"""
)
BETWEEN = (
    IMPORT
    + """
with stopping.listening():
    print("between", flush=True)
    time.sleep(60)
"""
)
PARENT = (
    IMPORT
    + """
rank = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
with stopping.forwarding(lambda: [rank.pid]) as came:
    code = rank.wait()
print("forwarded", *came, code, flush=True)
"""
)
Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start():
    """Start a Python program that prints a line when it is ready."""
    running = []

    def begin(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline()
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_running_step_is_finished(start: Start, number: signal.Signals) -> None:
    process = start(STEPPING, "leave")
    process.send_signal(number)
    assert process.communicate(timeout=60) == (f"{number.name}\n", "saved\n")


def test_a_signal_behind_the_last_step_is_not_lost(start: Start) -> None:
    process = start(STEPPING, "go on")
    process.send_signal(signal.SIGTERM)
    assert "ended by SIGTERM between steps" in process.communicate(timeout=60)[1]
    assert process.returncode == Requeue.exit_code


def test_ctrl_c_ends_at_once_the_second_time(start: Start) -> None:
    process = start(STEPPING, "sleep")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGTERM)  # what the launcher makes of the first one
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == INTERRUPTED


def test_between_steps_the_process_leaves_at_once(start: Start) -> None:
    process = start(BETWEEN)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == "ended by SIGTERM between steps; the same command goes on\n"
    assert process.returncode == Requeue.exit_code == 75


def test_the_parent_passes_signals_on(start: Start) -> None:
    process = start(PARENT, BETWEEN)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[0] == "forwarded SIGUSR1 75\n"


def test_the_parent_kills_the_ranks_at_the_second_ctrl_c(start: Start) -> None:
    process = start(PARENT, STEPPING, "sleep")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGTERM\n"  # the rank's, for which it counts as no Ctrl-C
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == INTERRUPTED
