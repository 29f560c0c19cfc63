"""Power by the board's own monitors, and energy as its integral.

    INA3221 through hwmon (JetPack 5 and newer):  in{N}_label, in{N}_input mV, curr{N}_input mA
    INA3221 through iio (JetPack 4):              rail_name_{N}, in_power{N}_input mW
    INA238 through hwmon (Thor's carrier board):  label, power1_input uW

On some boards one rail feeds all others and is the total; on others the total is the sum. Which rule was
taken stands in every report, as does the rate that was really reached.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.jetson.sysfs import numbered, read_int, read_text

# A rail of such a name feeds all others: Orin Nano and NX, JetPack 4's boards, Thor's carrier board.
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
CHIPS = re.compile(r"ina(3221x?|2\d\d)")
# Channels that INA3221's driver adds, "sum of shunt voltages" among them: no rail.
_CHANNELS = (1, 2, 3)
LEAST_HZ = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """A supply rail with a monitor."""

    name: str
    power: Path | None
    """A file with its power; None: voltage times current."""
    power_unit_w: float
    volts: Path
    """In mV."""
    amperes: Path
    """In mA."""

    def read_w(self) -> float | None:
        """Its power now; None where the monitor does not answer."""
        if self.power is not None:
            value = read_int(self.power)
            return None if value is None else value * self.power_unit_w
        millivolts, milliamperes = read_int(self.volts), read_int(self.amperes)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes * 1e-6


def find_rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """The rails of this machine in the order of their monitors; none on a machine without monitors."""
    rails: dict[str, Rail] = {}
    for folder in _monitors(root):
        for rail in (*_hwmon(folder), *_iio(folder)):
            rails.setdefault(rail.name, rail)  # a monitor may be listed by its driver and by its bus
    return tuple(rails.values())


def total_rule(names: Sequence[str]) -> str:
    """How the total follows from rails of these names: the rail that is the total, or their sum."""
    for total in TOTALS:
        if total in names:
            return total
    return "sum of " + ", ".join(names) if names else "no rails"


def total_w(watts: Mapping[str, float]) -> float:
    """The total of one sample, by `total_rule`."""
    for total in TOTALS:
        if total in watts:
            return watts[total]
    return sum(watts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What a stretch of time took."""

    gross_j: float
    net_j: float | None
    """Without what the board takes when idle; None where that was not measured."""
    idle_w: float | None
    mean_w: float
    most_w: float
    seconds: float
    rails_j: dict[str, float]
    rule: str
    samples: int
    rate_hz: float
    """Samples per second that were really taken."""

    @property
    def dense(self) -> bool:
        """Whether the rate was at least 10 Hz; below, short peaks are missed."""
        return self.rate_hz >= LEAST_HZ


def energy_of(
    times_s: Sequence[float], watts: Sequence[Mapping[str, float]], *, idle_w: float | None = None
) -> Energy | None:
    """The energy of samples by the trapezoid rule; None with fewer than two.

    Args:
        times_s: when each sample was taken, rising.
        watts: by rail, the same rails in each.
        idle_w: what the board takes when idle, from a stretch before.
    """
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return None
    t = np.asarray(times_s, np.float64)
    names = list(watts[0])
    rails = {name: np.array([sample[name] for sample in watts]) for name in names}
    total = np.array([total_w(sample) for sample in watts])
    seconds = float(t[-1] - t[0])
    gross = _trapezoid(total, t)
    return Energy(
        gross_j=gross,
        net_j=None if idle_w is None else gross - idle_w * seconds,
        idle_w=idle_w,
        mean_w=gross / seconds,
        most_w=float(total.max()),
        seconds=seconds,
        rails_j={name: _trapezoid(values, t) for name, values in rails.items()},
        rule=total_rule(names),
        samples=len(t),
        rate_hz=(len(t) - 1) / seconds,
    )


class Sampler:
    """Calls a function at a steady rate in a thread of its own, from `start` to `stop`.

    Args:
        read: takes one sample; runs in that thread, and once more at each end.
        rate_hz: how often; where a sample takes longer than that, the next one follows at once.
    """

    def __init__(self, read: Callable[[], None], *, rate_hz: float) -> None:
        self._read, self._period_s = read, 1.0 / rate_hz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power-sampler", daemon=True)

    def start(self) -> None:
        self._read()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._read()

    def _run(self) -> None:
        due = time.monotonic() + self._period_s
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._read()
            # From the plan, not from now: delays do not add up. A late one is not made up for by a burst.
            due = max(due + self._period_s, time.monotonic())


def read_rails(rails: Sequence[Rail]) -> dict[str, float] | None:
    """One sample of all rails; None where one does not answer, as a part would pass for the whole."""
    watts = {rail.name: rail.read_w() for rail in rails}
    return None if not watts or None in watts.values() else {n: w for n, w in watts.items() if w is not None}


def idle_w(root: Path = Path("/"), *, seconds: float = 3.0, rate_hz: float = 20.0) -> float | None:
    """What the board takes while nothing is asked of it; None where it has no monitors."""
    rails = find_rails(root)
    times: list[float] = []
    watts: list[dict[str, float]] = []

    def sample() -> None:
        found = read_rails(rails)
        if found is not None:
            times.append(time.monotonic())
            watts.append(found)

    sampler = Sampler(sample, rate_hz=rate_hz)
    sampler.start()
    time.sleep(seconds)
    sampler.stop()
    energy = energy_of(times, watts)
    return energy.mean_w if energy else None


def _monitors(root: Path) -> list[Path]:
    """Folders of monitors, each once: hwmon devices by name, and iio devices of the older driver."""
    found: dict[Path, Path] = {}
    for folder in numbered(root / "sys/class/hwmon", "hwmon*"):
        if CHIPS.fullmatch(read_text(folder / "name") or ""):
            found.setdefault(folder.resolve(), folder)
    drivers = root / "sys/bus/i2c/drivers"
    for pattern in ("ina*/*/hwmon/hwmon*", "ina3221x/*/iio:device*"):
        for folder in sorted(drivers.glob(pattern)):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _hwmon(folder: Path) -> list[Rail]:
    rails = []
    for number in _CHANNELS:
        name = read_text(folder / f"in{number}_label")
        if _wired(name) and (folder / f"curr{number}_input").exists():
            rails.append(_rail(name, folder, number))
    own = read_text(folder / "label")  # a monitor of one rail: INA238
    if not rails and _wired(own) and (folder / "power1_input").exists():
        rails.append(_rail(own, folder, 1))
    return rails


def _rail(name: str | None, folder: Path, number: int) -> Rail:
    power = folder / f"power{number}_input"
    return Rail(
        name=name or "",
        power=power if power.exists() else None,
        power_unit_w=1e-6,
        volts=folder / f"in{number}_input",
        amperes=folder / f"curr{number}_input",
    )


def _iio(folder: Path) -> list[Rail]:
    rails = []
    for number in range(3):
        name = read_text(folder / f"rail_name_{number}")
        power = folder / f"in_power{number}_input"
        if name is not None and _wired(name) and power.exists():
            volts, amperes = folder / f"in_voltage{number}_input", folder / f"in_current{number}_input"
            rails.append(Rail(name=name, power=power, power_unit_w=1e-3, volts=volts, amperes=amperes))
    return rails


def _wired(name: str | None) -> bool:
    """Whether a channel has a rail: "NC" is not connected, and some drivers list their own sum."""
    return name is not None and name != "NC" and not name.startswith("sum of shunt")


def _trapezoid(values: np.ndarray, times_s: np.ndarray) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(times_s)).sum())
