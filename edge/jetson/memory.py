"""Memory of a board whose CPU and GPU share it.

A process's resident memory leaves out what the GPU's driver has taken for it (NvMap), so the whole board is
looked at: what is available, and how low that went.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge.jetson.sysfs import read_text

_LINE = re.compile(r"^([\w()]+):\s+(\d+)(?: kB)?\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The board's memory at one moment, in bytes."""

    total: int
    available: int
    nvmap_used: int | None
    """Taken by the GPU's driver, for whatever process; None where the kernel does not say, as on Thor."""
    cma_free: int | None
    """Of the area that stays in one piece; engines and cameras fail without it."""


def read_memory(root: Path = Path("/")) -> Memory | None:
    """The memory now; None where /proc/meminfo cannot be read."""
    text = read_text(root / "proc/meminfo") or ""
    found = {name: int(number) * 1024 for name, number in _LINE.findall(text)}
    if "MemTotal" not in found or "MemAvailable" not in found:
        return None
    return Memory(
        total=found["MemTotal"],
        available=found["MemAvailable"],
        nvmap_used=found.get("NvMapMemUsed"),
        cma_free=found.get("CmaFree"),
    )
