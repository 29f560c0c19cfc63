"""How a run ends when it is asked to: SIGTERM, SIGUSR1 (what schedulers send before their limit), Ctrl-C.

    while steps are taken   the signal is noted; after the step all ranks agree, save and leave (loop.py)
    at any other time       the process leaves at once: what is finished is on disk, the rest is done again

Both end with exit code 75, for requeueing. A second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from genrecal.core.console import errors
from genrecal.core.errors import Requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED = 130  # what shells give for Ctrl-C

# What the handler, which can take no arguments, has to know: signals are the process's, and so is this.
_NOTED: list[str] = []
_STEPPING: list[bool] = []


@contextmanager
def listening() -> Iterator[None]:
    """Handle the signals in this process while this is open; in its main thread."""
    parent = os.getppid()

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getppid() != parent:  # the process that started this rank is dead, and somebody may start anew
            os._exit(Requeue.exit_code)
        if number == signal.SIGINT and name in _NOTED:
            os._exit(INTERRUPTED)
        _NOTED.append(name)
        if not _STEPPING:
            _leave()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    _NOTED.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stepping() -> Iterator[None]:
    """While this is open, a signal is only noted: who opened it looks at `asked` after every step.

    One that came behind the last look ends the process when this is closed.
    """
    _STEPPING.append(True)
    try:
        yield
    finally:
        _STEPPING.clear()
    if _NOTED:
        _leave()


def _leave() -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        errors.print(f"ended by {_NOTED[0]} between steps; the same command goes on", soft_wrap=True)
    os._exit(Requeue.exit_code)


def asked() -> str | None:
    """The signal that asked this process to end; None: none did."""
    return _NOTED[0] if _NOTED else None


def leave_to_parent() -> None:
    """For processes that read ahead: a signal to the whole group is not theirs, the rank still needs them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def forwarding(pids: Callable[[], list[int]]) -> Iterator[list[str]]:
    """While this is open, pass the signals on to the ranks; yields the names of those that came.

    Ctrl-C may reach the ranks from the terminal, too; they count it, so it goes on to them as SIGTERM.

    Args:
        pids: the ranks' processes at the time; while there are none, a signal ends this one.
    """
    came: list[str] = []

    def forward(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        hard = number == signal.SIGINT and name in came
        came.append(name)
        ranks = pids()
        if not ranks:
            os._exit(Requeue.exit_code)
        for pid in ranks:
            try:
                os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
            except ProcessLookupError:
                continue
        if hard:
            os._exit(INTERRUPTED)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
