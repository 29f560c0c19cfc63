"""What tests say to `zygote.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.train.conftest import ROOT, environment

COMMAND = [sys.executable, "-m", "tests.train.zygote"]


class Rank:
    """One rank of a run, running or ended."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self.zygote, self.pid, self.log = zygote, pid, log

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return int(self.zygote.read()["code"])

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def operations(self) -> int:
        """File operations in its run folder so far."""
        return int(Path(f"{self.log}.operations").read_text() or 0)


class Zygote:
    """The process that forks ranks, one after the other.

    Args:
        logs: folder for what ranks print.
        under: a command that starts the process, such as unshare.
    """

    def __init__(self, logs: Path, under: tuple[str, ...] = ()) -> None:
        self.logs, self.under, self.count = logs, under, 0

    def __enter__(self) -> Zygote:
        self.process = subprocess.Popen(
            [*self.under, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.logs / "zygote.log").open("w"),
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        assert self.read() == {"ready": True}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.logs / "zygote.log").read_text()[-3000:]
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def start(self, config: Path, at: dict[str, Any] | None = None) -> Rank:
        """Start a rank that runs `config`; one at a time."""
        self.count += 1
        log = self.logs / f"{self.count}.log"
        return Rank(self, self.ask(config=str(config), log=str(log), at=at)["pid"], log)

    def run(self, config: Path, at: dict[str, Any] | None = None) -> tuple[int, Rank]:
        rank = self.start(config, at)
        return rank.wait(), rank

    def shell(self, command: str) -> str:
        """Run a command where the ranks run."""
        done = self.ask(shell=command)
        assert done["code"] == 0, done["printed"]
        return done["printed"]
