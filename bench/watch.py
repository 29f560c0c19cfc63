"""Energy and device memory round a piece of work, from whatever this machine has to measure them.

Jetson          edge.jetson.meter.Meter: the board's rails, memory that CPU and GPU share
NVIDIA GPU      nvidia-smi: the GPU board's power, its memory
anything else   nothing: `missing` says so, and no figure is given
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from bench.nvidia_smi import GpuSampler
from edge.device import jetson_board
from edge.jetson.meter import Meter
from edge.jetson.power import idle_w
from edge.watching import IDLE_S, Watched, of_report
from genrecal.core.errors import BenchError

NO_MONITOR = "this machine has no power monitor that is read here (a Jetson's rails, or nvidia-smi)"
CPU_MEMORY = "on the CPU there is no device memory; see the process's"


class Watch:
    """Measures from entry to exit; `result()` is there afterwards.

    Args:
        device: cpu, cuda or jetson.
        here: the work is done on this machine; else nothing is measured.
        idle_watts: of the same machine with the model loaded, for net energy.
        root: the root of the file system.
        nvidia_smi: the program; None: the one on the path.
    """

    def __init__(
        self,
        device: str,
        *,
        here: bool = True,
        idle_watts: float | None = None,
        root: Path = Path("/"),
        nvidia_smi: str | None = None,
    ) -> None:
        self._idle_watts = idle_watts
        # On a Jetson the CPU's work, too, is on the board's rails.
        self._meter = Meter(root, idle_w=idle_watts) if here and jetson_board(root) is not None else None
        self._gpu = GpuSampler(nvidia_smi) if here and device == "cuda" and self._meter is None else None

    def __enter__(self) -> Watch:
        if self._meter is not None:
            self._meter.__enter__()
        if self._gpu is not None:
            self._gpu.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._meter is not None:
            self._meter.__exit__(kind, error, traceback)
        if self._gpu is not None:
            self._gpu.stop()

    def result(self) -> Watched:
        """What was measured; None for what could not be.

        Raises:
            BenchError: the work is not over.
        """
        if self._meter is not None:
            if self._meter.report is None:
                raise BenchError("was asked before the work was over", where="meter")
            return of_report(self._meter.report)
        if self._gpu is None or not self._gpu.log.used_bytes:
            energy = self._gpu.log.energy(self._idle_watts) if self._gpu else None
            return Watched(energy=energy)
        used = self._gpu.log.used_bytes
        return Watched(
            energy=self._gpu.log.energy(self._idle_watts),
            memory_bytes=max(used) - used[0],
            memory_rule="most that was used on the GPU less what was before (nvidia-smi)",
        )


def idle_power(device: str, *, root: Path = Path("/"), nvidia_smi: str | None = None) -> float | None:
    """What the machine takes with the model loaded and nothing asked; None where nothing measures it."""
    if jetson_board(root) is not None:
        return idle_w(root, seconds=IDLE_S)
    if device != "cuda":
        return None
    with Watch(device, root=root, nvidia_smi=nvidia_smi) as watch:
        time.sleep(IDLE_S)
    energy = watch.result().energy
    return energy.mean_w if energy else None
