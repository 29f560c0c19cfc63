"""Energy, memory and throttling of whatever is done inside a `with`.

idle = idle_w()
with Meter(idle_w=idle) as meter:
    model.answer(query)
meter.report.energy.gross_j, meter.report.lowest_available_bytes, meter.report.throttling
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.jetson.board import Board, read_board
from edge.jetson.memory import Memory, read_memory
from edge.jetson.power import Energy, Sampler, energy_of, find_rails, read_rails
from edge.jetson.throttle import ThrottleLog, Throttling, read_throttle

RATE_HZ = 20.0
# Temperatures move slowly, and reading every zone takes as long as all rails.
_THROTTLE_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a stretch took, and on which board."""

    board: Board | None
    energy: Energy | None
    """None where the board has no power monitors, or they did not answer twice."""
    missed: int
    """Samples in which a rail did not answer; they are left out."""
    memory_before: Memory | None
    memory_after: Memory | None
    lowest_available_bytes: int | None
    """The least that was available; what the stretch took is `memory_before.available` less this."""
    throttling: Throttling

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"throttled": self.throttling.throttled}


class Meter:
    """Measures from entry to exit; `report` is there afterwards. On another machine than a Jetson it tells
    memory alone.

    Args:
        root: the root of the file system.
        idle_w: what the board takes when idle (`power.idle_w`), for the net energy.
        rate_hz: samples per second.
    """

    def __init__(
        self, root: Path = Path("/"), *, idle_w: float | None = None, rate_hz: float = RATE_HZ
    ) -> None:
        self._root, self._idle_w, self._rate_hz = root, idle_w, rate_hz
        self.report: Report | None = None

    def __enter__(self) -> Meter:
        self.report = None
        self._board = read_board(self._root)
        self._rails = find_rails(self._root)
        self._times: list[float] = []
        self._watts: list[dict[str, float]] = []
        self._missed = 0
        self._lowest: int | None = None
        self._log = ThrottleLog()
        self._before = read_memory(self._root)
        self._throttle_due = 0.0
        self._sampler = Sampler(self._sample, rate_hz=self._rate_hz)
        self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._throttle_due = 0.0  # the last sample has the last counters
        self._sampler.stop()
        self.report = Report(
            board=self._board,
            energy=energy_of(self._times, self._watts, idle_w=self._idle_w),
            missed=self._missed,
            memory_before=self._before,
            memory_after=read_memory(self._root),
            lowest_available_bytes=self._lowest,
            throttling=self._log.result(),
        )

    def _sample(self) -> None:
        watts = read_rails(self._rails)
        now = time.monotonic()
        if watts is not None:
            self._times.append(now)
            self._watts.append(watts)
        elif self._rails:
            self._missed += 1
        memory = read_memory(self._root)
        if memory is not None:
            self._lowest = min(memory.available, self._lowest or memory.available)
        if now >= self._throttle_due:
            self._log.add(read_throttle(self._root))
            self._throttle_due = now + _THROTTLE_PERIOD_S
