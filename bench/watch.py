"""Energy and device memory round a piece of work, from whatever this machine has to measure them.

Jetson          edge.jetson.meter.Meter: the board's rails, memory that CPU and GPU share
NVIDIA GPU      nvidia-smi: the GPU board's power, its memory
anything else   nothing: `missing` says so, and no figure is given
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.nvidia_smi import GpuSampler
from edge.device import jetson_board
from edge.jetson.board import Board
from edge.jetson.meter import Meter
from edge.jetson.power import Energy, idle_w
from genrecal.core.errors import BenchError

IDLE_S = 3.0
NO_MONITOR = "this machine has no power monitor that is read here (a Jetson's rails, or nvidia-smi)"
CPU_MEMORY = "on the CPU there is no device memory; see the process's"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the work took."""

    energy: Energy | None
    memory_bytes: int | None
    memory_rule: str | None
    board: str | None
    throttling: str | None


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
            return self._of_meter(self._meter)
        if self._gpu is None or not self._gpu.log.used_bytes:
            energy = self._gpu.log.energy(self._idle_watts) if self._gpu else None
            return Watched(energy=energy, memory_bytes=None, memory_rule=None, board=None, throttling=None)
        used = self._gpu.log.used_bytes
        return Watched(
            energy=self._gpu.log.energy(self._idle_watts),
            memory_bytes=max(used) - used[0],
            memory_rule="most that was used on the GPU less what was before (nvidia-smi)",
            board=None,
            throttling=None,
        )

    def _of_meter(self, meter: Meter) -> Watched:
        report = meter.report
        if report is None:
            raise BenchError("was asked before the work was over", where="meter")
        taken = None
        if report.memory_before is not None and report.lowest_available_bytes is not None:
            taken = report.memory_before.available - report.lowest_available_bytes
        board = report.board
        return Watched(
            energy=report.energy,
            memory_bytes=taken,
            memory_rule="most that was taken of the board's memory (MemAvailable)"
            if taken is not None
            else None,
            board=_described(board) if board else None,
            throttling=report.throttling.describe(),
        )


def _described(board: Board) -> str:
    """The board with what its speed depends on."""
    mode = board.power_mode
    named = f"power mode {mode.name or mode.id}" if mode else "power mode unknown"
    clocks = (f"{name} {clock.now_mhz:.0f} MHz" for name, clock in sorted(board.clocks.items()))
    return ", ".join((board.model, named, *clocks))


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
