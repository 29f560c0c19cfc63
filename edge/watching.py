"""What a board takes for a stretch of answers: energy by its rails, shared memory, throttling.

Meter's report -> Watched -> bench, here or over ssh (`genrecal answer --watch`):

    {"id": "1", "watch": "begin"} -> idle power is measured for a few seconds, then the stretch begins
    {"id": "2", "watch": "end"}   -> {"id": "2", "watched": {"whole": ..., "work": ...}}

"whole" lasts from before the build is opened, for memory; "work" between the two lines, for energy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.device import jetson_board
from edge.jetson.board import Board
from edge.jetson.meter import Meter, Report
from edge.jetson.power import Energy, idle_w

IDLE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the work took; None for what could not be measured."""

    energy: Energy | None = None
    memory_bytes: int | None = None
    memory_rule: str | None = None
    board: str | None = None
    throttling: str | None = None


def of_report(report: Report) -> Watched:
    """A meter's report as what a bench shows."""
    taken = None
    if report.memory_before is not None and report.lowest_available_bytes is not None:
        taken = report.memory_before.available - report.lowest_available_bytes
    return Watched(
        energy=report.energy,
        memory_bytes=taken,
        memory_rule="most that was taken of the board's memory (MemAvailable)" if taken is not None else None,
        board=_described(report.board) if report.board else None,
        throttling=report.throttling.describe(),
    )


def from_json(content: dict[str, Any] | None) -> Watched:
    """What `asdict` made of it on another machine; None: nothing was measured there.

    Raises:
        TypeError: it is something else.
    """
    if content is None:
        return Watched()
    energy = content.get("energy")
    return Watched(**{**content, "energy": Energy(**energy) if energy else None})


class Watching:
    """The board of this machine while it answers; on another machine than a Jetson nothing is measured.

    Args:
        root: the root of the file system.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root, self._board = root, jetson_board(root) is not None
        self._whole = self._started(None)
        self._work: Meter | None = None

    def begin(self) -> None:
        """Measure what the board takes when idle, then begin the stretch, anew where one has begun."""
        _ended(self._work)
        self._work = self._started(idle_w(self._root, seconds=IDLE_S) if self._board else None)

    def end(self) -> dict[str, Any]:
        """End both; values for JSON, None for what was not measured."""
        found = {"whole": _ended(self._whole), "work": _ended(self._work)}
        self._whole = self._work = None
        return found

    def _started(self, idle_watts: float | None) -> Meter | None:
        return Meter(self._root, idle_w=idle_watts).__enter__() if self._board else None


def _ended(meter: Meter | None) -> dict[str, Any] | None:
    if meter is None:
        return None
    meter.__exit__(None, None, None)
    return asdict(of_report(meter.report)) if meter.report is not None else None


def _described(board: Board) -> str:
    """The board with what its speed depends on."""
    mode = board.power_mode
    named = f"power mode {mode.name or mode.id}" if mode else "power mode unknown"
    clocks = (f"{name} {clock.now_mhz:.0f} MHz" for name, clock in sorted(board.clocks.items()))
    return ", ".join((board.model, named, *clocks))
