"""Which board this is, and how it is set: Jetson Linux, power mode, clocks.

/proc/device-tree/model, compatible     the board, its module
/etc/nv_tegra_release                   Jetson Linux (L4T)
/var/lib/nvpmodel/status, /etc/nvpmodel.conf    the power mode; else what `nvpmodel -q` prints
cpufreq, devfreq, debugfs               clocks of CPU, GPU and memory (EMC)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.jetson.sysfs import numbered, read_int, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A kind of Jetson."""

    name: str
    compute_capability: str
    """Of its GPU, as TensorRT engines are built for it: 87 is 8.7."""
    bandwidth_gb_s: float
    """Of its memory, at its fastest setting."""


# In the device tree's model -> the module. The first that matches: "AGX Orin" before "Orin".
_MODELS: tuple[tuple[str, Module], ...] = (
    (r"thor", Module(name="Thor", compute_capability="110", bandwidth_gb_s=273.0)),
    (r"agx orin", Module(name="AGX Orin", compute_capability="87", bandwidth_gb_s=204.8)),
    (r"orin nx", Module(name="Orin NX", compute_capability="87", bandwidth_gb_s=102.4)),
    (r"orin nano", Module(name="Orin Nano", compute_capability="87", bandwidth_gb_s=102.4)),
)
# Numbers of modules in `compatible`, which carrier boards of others leave in place: number -> pattern above.
_NUMBERS = {
    "p3834": r"thor",
    "p3701": r"agx orin",
    "p3767-0000": r"orin nx",
    "p3767-0001": r"orin nx",
    "p3767-0003": r"orin nano",
    "p3767-0004": r"orin nano",
    "p3767-0005": r"orin nano",
}
_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_STATUS = re.compile(r"pmode:(\d+)")
_CONF_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_QUERY = re.compile(r"NV Power Mode:\s*(\S.*?)\s*\n\s*(\d+)")
# The GPU among devfreq's devices: Orin names it by its address (17000000.gpu or .ga10b), Thor by its parts.
_GPU_DEVFREQ = re.compile(r"(\d+\.(gpu|ga10b|gv11b)|gpu-gpc-\d+)")
_EMC_RATES = (
    "sys/kernel/debug/bpmp/debug/clk/emc/rate",  # Orin; for root alone
    "sys/class/devfreq/bwmgr/cur_freq",  # Thor
)
QUERY_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """What nvpmodel is set to."""

    id: int
    name: str | None
    """As the board's own list has it; None where that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A clock, and the bounds that it moves in now, in MHz."""

    now_mhz: float
    least_mhz: float | None
    most_mhz: float | None

    @property
    def fixed(self) -> bool:
        """Whether it cannot move, as jetson_clocks leaves it."""
        return self.least_mhz is not None and self.least_mhz == self.most_mhz


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A Jetson as it is set now."""

    model: str
    """What the device tree calls it."""
    module: Module | None
    """None: one that is newer or older than this runtime."""
    linux: str | None
    """Jetson Linux: "36.4.3"."""
    power_mode: PowerMode | None
    power_modes: tuple[PowerMode, ...]
    """All that the board's nvpmodel.conf offers."""
    clocks: dict[str, Clock]
    """cpu (the fastest core), gpu and emc (memory), as far as they can be read."""


def module_of(model: str, compatible: str = "") -> Module | None:
    """The module by the device tree's `model`, or, where that says nothing, by `compatible`."""
    wanted = model.lower()
    numbers = [pattern for number, pattern in _NUMBERS.items() if number in compatible.lower()]
    for pattern, module in _MODELS:
        if re.search(pattern, wanted):
            return module
    return next((module for pattern, module in _MODELS if pattern in numbers), None)


def read_board(root: Path = Path("/"), *, query: Callable[[], str | None] | None = None) -> Board | None:
    """This machine's board; None where it is no Jetson.

    Args:
        root: the root of the file system.
        query: gives what `nvpmodel -q` prints, asked where its files say nothing; None: runs it, if `root`
            is this machine's own.
    """
    model = read_text(root / "proc/device-tree/model") or ""
    compatible = (read_text(root / "proc/device-tree/compatible") or "").replace("\0", " ")
    linux = jetson_linux(root)
    module = module_of(model, compatible)
    if module is None and linux is None and "jetson" not in model.lower():
        return None
    modes = power_modes(root)
    mode = _mode_from_status(root, modes)
    if mode is None:
        ask = query or (_nvpmodel if root == Path("/") else _nothing)
        mode = parse_query(ask() or "")
    return Board(
        model=model or "a Jetson whose device tree is hidden",
        module=module,
        linux=linux,
        power_mode=mode,
        power_modes=modes,
        clocks=read_clocks(root),
    )


def jetson_linux(root: Path = Path("/")) -> str | None:
    """The release of Jetson Linux: "36.4.3"."""
    found = _RELEASE.search(read_text(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


def power_modes(root: Path = Path("/")) -> tuple[PowerMode, ...]:
    """The modes in the board's nvpmodel.conf."""
    text = read_text(root / "etc/nvpmodel.conf") or ""
    return tuple(PowerMode(id=int(found[1]), name=found[2]) for found in _CONF_MODE.finditer(text))


def parse_query(text: str) -> PowerMode | None:
    """The mode that `nvpmodel -q` prints: its name, and its number in the next line."""
    found = _QUERY.search(text)
    return PowerMode(id=int(found[2]), name=found[1]) if found else None


def read_clocks(root: Path = Path("/")) -> dict[str, Clock]:
    """Clocks of CPU, GPU and memory, as far as they can be read; the memory's is for root alone on Orin."""
    clocks: dict[str, Clock] = {}
    cores = [
        clock
        for folder in numbered(root / "sys/devices/system/cpu", "cpu[0-9]*")
        if (
            clock := _clock(
                folder / "cpufreq", "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", 1e3
            )
        )
    ]
    if cores:
        clocks["cpu"] = max(cores, key=lambda clock: clock.now_mhz)
    for folder in numbered(root / "sys/class/devfreq", "*"):
        if _GPU_DEVFREQ.fullmatch(folder.name):
            clock = _clock(folder, "cur_freq", "min_freq", "max_freq", 1e6)
            if clock:
                clocks["gpu"] = clock
                break
    for name in _EMC_RATES:
        rate = read_int(root / name)
        if rate:
            clocks["emc"] = Clock(now_mhz=rate / 1e6, least_mhz=None, most_mhz=None)
            break
    return clocks


def _clock(folder: Path, now: str, least: str, most: str, unit: float) -> Clock | None:
    found = read_int(folder / now)
    if found is None:
        return None
    low, high = read_int(folder / least), read_int(folder / most)
    return Clock(
        now_mhz=found / unit,
        least_mhz=None if low is None else low / unit,
        most_mhz=None if high is None else high / unit,
    )


def _mode_from_status(root: Path, modes: tuple[PowerMode, ...]) -> PowerMode | None:
    found = _STATUS.search(read_text(root / "var/lib/nvpmodel/status") or "")
    if not found:
        return None
    number = int(found[1])
    return next((mode for mode in modes if mode.id == number), PowerMode(id=number, name=None))


def _nvpmodel() -> str | None:
    import shutil
    import subprocess  # seldom needed, and not free to import

    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-q"], capture_output=True, text=True, timeout=QUERY_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


def _nothing() -> str | None:
    return None
