"""Latency, throughput, memory and size of one subject, measured in a process of its own.

    queries -> request.json + images -> python -m bench.perf: open, warm up, answer one by one -> Perf

Its own process, because a peak of memory never falls again: two subjects in one process would share it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import bench
from bench.subject import open_subject, spec_from_json, spec_to_json
from bench.types import Answer, Part, Query, SubjectSpec
from genrecal.core.errors import BenchError, GenrecalError
from genrecal.core.files import read_json, write_json

WARM_UP = 2
TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Perf:
    """How fast and how large a subject is, one query at a time, after warm-up."""

    queries: int
    first_token_s_p50: float  # from the decoded image and the text to the first token
    first_token_s_p95: float
    total_s_p50: float  # to the whole answer
    total_s_p95: float
    tokens_per_s_p50: float | None  # after the first token; None where no answer had a second one
    tokens_per_s_p95: float | None
    answer_tokens_mean: float
    peak_memory_bytes: int  # resident, of the whole process with its libraries
    peak_gpu_bytes: int | None  # torch's allocations; None without torch on a GPU
    weights_bytes: int


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
                [sys.executable, "-m", "bench.perf", str(folder)],
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
        return Perf(**read_json(folder / "perf.json"))


def summarise(answers: Sequence[Answer], *, memory: int, gpu: int | None, weights: int) -> Perf:
    """The percentiles of timed answers; each has a time to its first token."""
    first = [answer.first_token_s for answer in answers if answer.first_token_s is not None]
    if len(first) != len(answers):
        raise BenchError("an answer came without its time to the first token", where="perf")
    speeds = [
        (answer.tokens - 1) / (answer.total_s - at)
        for answer, at in zip(answers, first, strict=True)
        if answer.tokens > 1
    ]
    totals = [answer.total_s for answer in answers]
    return Perf(
        queries=len(answers),
        first_token_s_p50=float(np.percentile(first, 50)),
        first_token_s_p95=float(np.percentile(first, 95)),
        total_s_p50=float(np.percentile(totals, 50)),
        total_s_p95=float(np.percentile(totals, 95)),
        tokens_per_s_p50=float(np.percentile(speeds, 50)) if speeds else None,
        tokens_per_s_p95=float(np.percentile(speeds, 95)) if speeds else None,
        answer_tokens_mean=float(np.mean([answer.tokens for answer in answers])),
        peak_memory_bytes=memory,
        peak_gpu_bytes=gpu,
        weights_bytes=weights,
    )


def peak_memory_bytes() -> int:
    """The most memory that this process has held resident.

    Linux keeps it for each address space in VmHWM; getrusage would also count the parent that started us.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _store(part: Part, folder: Path, number: int) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    path = folder / f"{number}-{len(list(folder.glob(f'{number}-*')))}.png"
    part.save(path)
    return {"image": str(path)}


def _restore(part: dict[str, str]) -> Part:
    if "text" in part:
        return part["text"]
    with Image.open(part["image"]) as image:
        return image.convert("RGB")


def _serve(folder: Path) -> None:
    request = read_json(folder / "request.json")
    queries = [
        Query(id=asked["id"], parts=tuple(_restore(part) for part in asked["parts"]))
        for asked in request["queries"]
    ]
    subject = open_subject(spec_from_json(request["spec"]))
    for number in range(WARM_UP):
        subject.answer([queries[number % len(queries)]])
    answers = []
    for query in queries:
        # A build keeps images and prompts: warmed up with, a query would be timed as a second question.
        subject.forget()
        answers += subject.answer([query])
    perf = summarise(
        answers, memory=peak_memory_bytes(), gpu=_peak_gpu_bytes(), weights=subject.facts.weights_bytes
    )
    write_json(folder / "perf.json", asdict(perf))


def _peak_gpu_bytes() -> int | None:
    # A build runs without torch; asking for it here would import it.
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


if __name__ == "__main__":
    try:
        _serve(Path(sys.argv[1]))
    except GenrecalError as error:
        # The parent reads the last line of stderr.
        print(json.dumps(str(error), ensure_ascii=False)[1:-1], file=sys.stderr)
        sys.exit(error.exit_code)
