"""Whether the board slowed itself down: heat, and current.

thermal zones          temperatures, and the trip points at which something is done
cooling devices        a state above 0 is a brake that is on; fans are no brake
soctherm_oc            oc{N}_event_cnt: how often the supply was overdrawn since the board was started
INA3221                curr{N}_max_alarm, curr{N}_crit_alarm: current above its limits now
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.jetson.sysfs import numbered, read_int, read_text

# What each counter counts on Orin, by NVIDIA's description.
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """The board's brakes at one moment."""

    celsius: dict[str, float]
    """By thermal zone."""
    brakes: dict[str, int]
    """State of each cooling device that is on, fans left out."""
    over_current: dict[str, int]
    """Events since the board was started, by counter."""
    alarms: tuple[str, ...]
    """Rails whose current is above a limit now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """What happened in a stretch of time."""

    hottest_celsius: dict[str, float]
    brakes: dict[str, int]
    """Cooling devices that were on at some moment, with their highest state."""
    over_current: dict[str, int]
    """Events in this stretch, of counters that moved."""
    alarms: tuple[str, ...]

    @property
    def throttled(self) -> bool:
        """Whether the figures of this stretch are those of a board that was slowed down."""
        return bool(self.brakes or self.over_current or self.alarms)

    def describe(self) -> str:
        """In a line."""
        if not self.throttled:
            return "none"
        events = [f"{OVER_CURRENT.get(name, name)} {count}x" for name, count in self.over_current.items()]
        brakes = [f"{name} at {state}" for name, state in self.brakes.items()]
        return ", ".join((*brakes, *events, *(f"{name} above its limit" for name in self.alarms)))


def read_throttle(root: Path = Path("/")) -> Throttle:
    """What the board tells now; empty where it tells nothing."""
    celsius = {}
    for zone in numbered(root / "sys/class/thermal", "thermal_zone*"):
        name, value = read_text(zone / "type"), read_int(zone / "temp")  # a zone of a part that is off errs
        if name is not None and value is not None and value > -200_000:
            celsius[name] = value / 1000
    brakes: dict[str, int] = {}
    for device in numbered(root / "sys/class/thermal", "cooling_device*"):
        name, state = read_text(device / "type"), read_int(device / "cur_state")
        if name is not None and state and "fan" not in name.lower():
            brakes[name] = max(state, brakes.get(name, 0))
    over_current: dict[str, int] = {}
    alarms: list[str] = []
    for monitor in numbered(root / "sys/class/hwmon", "hwmon*"):
        for counter in numbered(monitor, "oc[0-9]*_event_cnt"):
            count = read_int(counter)
            if count is not None:
                over_current[counter.name.partition("_")[0]] = count
        for number in (1, 2, 3):
            name = read_text(monitor / f"in{number}_label")
            kinds = [kind for kind in ("max", "crit") if read_int(monitor / f"curr{number}_{kind}_alarm")]
            if name is not None and name != "NC" and kinds:
                alarms.append(name)
    return Throttle(celsius=celsius, brakes=brakes, over_current=over_current, alarms=tuple(alarms))


class ThrottleLog:
    """Gathers moments of one stretch."""

    def __init__(self) -> None:
        self._first: Throttle | None = None
        self._last: Throttle | None = None
        self._celsius: dict[str, float] = {}
        self._brakes: dict[str, int] = {}
        self._alarms: dict[str, None] = {}

    def add(self, now: Throttle) -> None:
        self._first = self._first or now
        self._last = now
        for name, value in now.celsius.items():
            self._celsius[name] = max(value, self._celsius.get(name, value))
        for name, state in now.brakes.items():
            self._brakes[name] = max(state, self._brakes.get(name, 0))
        self._alarms |= dict.fromkeys(now.alarms)

    def result(self) -> Throttling:
        before = self._first.over_current if self._first else {}
        after = self._last.over_current if self._last else {}
        moved = {name: count - before.get(name, 0) for name, count in after.items()}
        return Throttling(
            hottest_celsius=dict(self._celsius),
            brakes=dict(self._brakes),
            over_current={name: count for name, count in moved.items() if count > 0},
            alarms=tuple(self._alarms),
        )
