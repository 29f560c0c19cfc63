"""Power and memory of an NVIDIA GPU while something runs: `nvidia-smi` prints both, twenty times a second.

It reads the whole GPU, not a process; what others do there at the same time is in the figures.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field

from edge.jetson.power import Energy, energy_of

PERIOD_MS = 50
RAIL = "GPU board (nvidia-smi power.draw)"
MIB = 2**20
FIRST_LINE_S = 10.0


@dataclass(slots=True, kw_only=True)
class GpuLog:
    """What was read so far."""

    times_s: list[float] = field(default_factory=list)
    watts: list[dict[str, float]] = field(default_factory=list)
    used_bytes: list[int] = field(default_factory=list)

    def add(self, line: str, now_s: float) -> None:
        """Take one line, `MiB used, watts`; a figure that the GPU does not tell is left out."""
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2:
            return
        with contextlib.suppress(ValueError):
            self.used_bytes.append(int(float(cells[0]) * MIB))
        try:
            watts = float(cells[1])
        except ValueError:
            return
        self.times_s.append(now_s)
        self.watts.append({RAIL: watts})

    def energy(self, idle_w: float | None) -> Energy | None:
        return energy_of(self.times_s, self.watts, idle_w=idle_w)


class GpuSampler:
    """Reads from `start` to `stop`; where there is no nvidia-smi, the log stays empty."""

    def __init__(self, program: str | None = None) -> None:
        self.log = GpuLog()
        self._program = program or shutil.which("nvidia-smi")
        self._process: subprocess.Popen[str] | None = None
        self._first = threading.Event()

    def start(self) -> None:
        if self._program is None:
            return
        # Of several GPUs, the one that the subject is given.
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
        self._process = subprocess.Popen(
            [
                self._program,
                f"--id={gpu}",
                "--query-gpu=memory.used,power.draw",
                "--format=csv,noheader,nounits",
                f"--loop-ms={PERIOD_MS}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, name="nvidia-smi", daemon=True)
        self._thread.start()
        # It takes its time to come up, and the memory before the work is what its first line says.
        self._first.wait(FIRST_LINE_S)

    def stop(self) -> GpuLog:
        if self._process is not None:
            self._process.terminate()
            self._thread.join()
            self._process.wait()
        return self.log

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self.log.add(line, time.monotonic())
            self._first.set()
        self._first.set()  # it ended without a line
