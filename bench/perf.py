"""Latency, throughput, memory and size of one subject, measured in a process of its own.

    queries -> request.json + images -> python -m bench.timed: open, warm up, answer one by one -> Perf

Its own process, because a peak of memory never falls again: two subjects in one process would share it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench
from bench.roofline import Bandwidth, Roofline
from bench.subject import spec_to_json
from bench.types import Part, Query, SubjectSpec
from genrecal.core.errors import BenchError
from genrecal.core.files import read_json, write_json

TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyUse:
    """Energy of the timed answers, and where it was read."""

    gross_j: float  # per answer
    net_j: float | None  # per answer, without what the machine takes when idle; None where that is unknown
    gross_j_per_token: float
    mean_w: float
    idle_w: float | None  # with the model loaded
    rail: str
    rate_hz: float  # samples per second; below 10, short peaks are missed


@dataclass(frozen=True, slots=True, kw_only=True)
class Perf:
    """How fast and how large a subject is, one query at a time, after warm-up.

    Percentiles are over all answers of all runs. What could not be measured is None, and `missing` says why.
    """

    queries: int
    first_token_s_p50: float  # from the decoded image and the text to the first token
    first_token_s_p95: float
    total_s_p50: float  # to the whole answer
    total_s_p95: float
    tokens_per_s_p50: float | None  # after the first token; None where no answer had a second one
    tokens_per_s_p95: float | None
    answer_tokens_mean: float
    peak_memory_bytes: int | None  # resident, of the whole process that answers; None: it is out of sight
    peak_gpu_bytes: int | None  # torch's allocations; None without torch on a GPU
    weights_bytes: int | None  # None: the subject has no files here
    warm_up: int = 0  # queries answered before, and not counted
    runs: int = 1  # through all queries
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # figure -> runs' medians, ends
    size_bytes: int | None = None  # of the whole folder
    device_memory_bytes: int | None = None
    device_memory_rule: str | None = None
    energy: EnergyUse | None = None
    roofline: Roofline | None = None
    board: str | None = None  # a Jetson with its power mode and clocks
    throttling: str | None = None  # on a Jetson: "none", or what slowed it down
    missing: Mapping[str, str] = field(default_factory=dict)  # figure -> why there is none


def perf_from_json(content: Mapping[str, Any]) -> Perf:
    """A `Perf` from what `asdict` made of it.

    Raises:
        TypeError, KeyError: it is something else.
    """
    nested: dict[str, Any] = {}
    if content.get("energy"):
        nested["energy"] = EnergyUse(**content["energy"])
    if content.get("roofline"):
        line = content["roofline"]
        nested["roofline"] = Roofline(**{**line, "bandwidth": Bandwidth(**line["bandwidth"])})
    nested["spread"] = {name: (low, high) for name, (low, high) in content.get("spread", {}).items()}
    return Perf(**{**content, **nested})


def measure(spec: SubjectSpec, queries: Sequence[Query]) -> Perf:
    """Open `spec` in a fresh process, answer `queries` at batch 1 and measure.

    Raises:
        BenchError: no queries, or the process failed; its last line says why.
    """
    if not queries:
        raise BenchError("there are no queries to time", where=spec.name)
    with tempfile.TemporaryDirectory(prefix="genrecal-perf-") as name:
        folder = Path(name)
        asked = []
        for number, query in enumerate(queries):
            asked.append({"id": query.id, "parts": [_store(part, folder, number) for part in query.parts]})
        write_json(folder / "request.json", {"spec": spec_to_json(spec), "queries": asked})
        source = str(Path(bench.__path__[0]).parent)
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            process = subprocess.run(
                [sys.executable, "-m", "bench.timed", str(folder)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"timing took more than {TIMEOUT_S} s", where=spec.name) from None
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            killed = " (killed: out of memory?)" if process.returncode == -9 else ""
            raise BenchError(f"timing failed{killed}: {lines[-1]}", where=spec.name)
        return perf_from_json(read_json(folder / "perf.json"))


def _store(part: Part, folder: Path, number: int) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    path = folder / f"{number}-{len(list(folder.glob(f'{number}-*')))}.png"
    part.save(path)
    return {"image": str(path)}
