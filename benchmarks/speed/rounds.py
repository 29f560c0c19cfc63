"""Rounds in turns: in each, every engine in a process of its own, then the two roofs.

A process opens its engine, warms up, and measures once. What else the machine does falls on all engines of a
round; medians are over rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.speed.cases import (
    CASES,
    IMAGE_PIXELS,
    NEW_TOKENS,
    PREFILL_TOKENS,
    PROMPT_TOKENS,
    WARM_TOKENS,
    take_packages,
)
from benchmarks.speed.engines import ENGINES, VisionEngine
from benchmarks.speed.roofline import Kernel, measure_bandwidth, measure_kernel, reads_of_graph
from genrecal.core.console import console
from genrecal.core.errors import BenchError

WARM_PIXELS = 56

# round -> name of an engine, or "roofs" -> figure -> value
Rounds = list[dict[str, dict[str, float]]]


def measure_case(name: str, work: Path, packages: Path | None, threads: int) -> dict[str, float]:
    """One engine in this process: tokens a second, and seconds of prefill and vision where it has them."""
    case = CASES[name]
    if case.kind in ("genai", "llama"):
        take_packages(packages)
    began = time.perf_counter()
    engine = ENGINES[case.kind](work / case.file, case.precision, threads)
    found = {"open_s": time.perf_counter() - began}
    engine.decode(PROMPT_TOKENS, WARM_TOKENS)
    found["tokens_s"] = (NEW_TOKENS - 1) / engine.decode(PROMPT_TOKENS, NEW_TOKENS)
    if case.reads_images:
        sees = cast(VisionEngine, engine)
        sees.vision(WARM_PIXELS)
        found["vision_s"] = sees.vision(IMAGE_PIXELS)
        found["prefill_s"] = sees.prefill(PREFILL_TOKENS)
    return found


def measure_roofs(work: Path, threads: int) -> dict[str, float]:
    """Bytes a second: from memory, and of each kernel of our builds in the cache."""
    found = {"bandwidth": measure_bandwidth(threads)}
    for kernel in sorted(kernels(work)):
        found[kernel.name] = measure_kernel(kernel, threads)
    return found


def kernels(work: Path) -> set[Kernel]:
    """Those of our builds' decoders."""
    graphs = [decoder(work / case.file) for case in CASES.values() if case.kind == "edge"]
    return {kernel for graph in graphs for kernel in reads_of_graph(graph).by_kernel}


def decoder(build: Path) -> Path:
    """The graph that decodes, of a build or of a folder of onnxruntime-genai's."""
    name = "genai_config.json" if (build / "genai_config.json").is_file() else "manifest.json"
    settings = json.loads((build / name).read_text(encoding="utf-8"))
    if name == "manifest.json":
        return build / settings["graphs"]["decoder_model_merged"]
    return build / settings["model"]["decoder"]["filename"]


def run_rounds(
    work: Path, packages: Path | None, *, rounds: int, threads: int, names: Sequence[str] = tuple(CASES)
) -> list[dict[str, dict[str, float]]]:
    """Measure every engine and the roofs, round by round; a round is name -> figures.

    Raises:
        BenchError: a process failed; its last line is quoted.
    """
    options = ["--threads", str(threads)]
    if packages is not None:
        options += ["--packages", str(packages)]
    found = []
    for number in range(rounds):
        figures = {}
        for name in (*names, "roofs"):
            figures[name] = _measured(["one", str(work), name, *options], threads)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items())
            console.print(f"round {number + 1}, {name}: {shown}", soft_wrap=True)
        found.append(figures)
    return found


def summarise(rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Name -> figure -> median, lowest and highest over the rounds."""
    return {
        name: {figure: spread(one[name][figure] for one in rounds) for figure in rounds[0][name]}
        for name in rounds[0]
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    found = sorted(values)
    return {"median": statistics.median(found), "lowest": found[0], "highest": found[-1]}


def _measured(arguments: list[str], threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.speed", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchError(f"could not be measured ({last})", where=arguments[2])
    return json.loads(done.stdout.splitlines()[-1])
