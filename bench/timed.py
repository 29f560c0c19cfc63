"""The process that is measured: opens a subject, warms up, answers one by one, and tells what it took.

python -m bench.timed FOLDER      FOLDER/request.json -> FOLDER/perf.json, as bench/perf.py asks for it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.perf import EnergyUse, Perf
from bench.roofline import Roofline, decoder_bytes, measured_bandwidth, roofline
from bench.subject import open_subject, spec_from_json
from bench.subjects.device import DeviceSubject
from bench.types import Answer, Part, Query, Subject
from bench.watch import CPU_MEMORY, NO_MONITOR, Watch, idle_power
from edge.memory import peak_memory_bytes
from edge.watching import Watched
from genrecal.core.errors import BenchError, GenrecalError
from genrecal.core.files import read_json, write_json

WARM_UP = 2
RUNS = 3
NO_MEMORY = "neither the board nor nvidia-smi tells it"
ELSEWHERE = "the subject answers on another machine than the one that measures"
NOT_THERE = "the device shows no power monitor or memory of a board, or the connection broke meanwhile"
NO_BANDWIDTH = "nothing here reads this device's memory to measure it (torch does, on a GPU)"


def serve(folder: Path) -> None:
    request = read_json(folder / "request.json")
    queries = [
        Query(id=asked["id"], parts=tuple(_restore(part) for part in asked["parts"]))
        for asked in request["queries"]
    ]
    spec = spec_from_json(request["spec"])
    here = spec.remote is None and spec.url is None
    if spec.remote is not None:
        spec = replace(spec, remote=replace(spec.remote, watch=True))
    # The whole of it for memory, from before the model is there; the timed answers alone for energy.
    with Watch(spec.device, here=here) as whole:
        subject = open_subject(spec)
        for number in range(WARM_UP):
            subject.answer([queries[number % len(queries)]])
        idle_watts = idle_power(spec.device) if here else None
        with Watch(spec.device, here=here, idle_watts=idle_watts) as work:
            if isinstance(subject, DeviceSubject):
                subject.begin_watch()
            runs = [[_timed(subject, query) for query in queries] for _ in range(RUNS)]
            there = subject.end_watch() if isinstance(subject, DeviceSubject) else None
        # Before the bandwidth is measured, which takes memory of its own.
        memory, gpu = _peak_memory(subject), _peak_gpu_bytes()
    perf = summarise(runs, memory=memory, gpu=gpu, weights=subject.facts.weights_bytes, warm_up=WARM_UP)
    missing: dict[str, str] = {}
    perf = replace(
        perf,
        size_bytes=_folder_bytes(spec.path),
        **costs(perf, *(there or (whole.result(), work.result())), device=spec.device, missing=missing),
        roofline=_roofline(subject, perf, missing) if here else None,
        missing=missing if here else _missing_there(missing, watched=there is not None),
    )
    write_json(folder / "perf.json", asdict(perf))


def _missing_there(missing: Mapping[str, str], *, watched: bool) -> dict[str, str]:
    """Why figures are missing of a subject that answers elsewhere."""
    why = {**dict.fromkeys(missing, NOT_THERE if watched else ELSEWHERE), "roofline": ELSEWHERE}
    if watched and missing.get("device memory") == CPU_MEMORY:
        why["device memory"] = CPU_MEMORY
    return why


def summarise(
    runs: Sequence[Sequence[Answer]], *, memory: int | None, gpu: int | None, weights: int | None, **more: Any
) -> Perf:
    """The percentiles of timed answers, which each have a time to their first token.

    Args:
        runs: the answers of each run through the queries.
        memory, gpu, weights: bytes.
        more: other fields of Perf.
    """
    answers = [answer for run in runs for answer in run]
    if any(answer.first_token_s is None for answer in answers):
        raise BenchError("an answer came without its time to the first token", where="perf")
    figures = {name: [value for run in runs for value in of(run)] for name, of in _FIGURES.items()}
    spread = {}
    for name, of in _FIGURES.items():
        medians = [float(np.median(values)) for run in runs if (values := of(run))]
        if medians:
            spread[name] = (min(medians), max(medians))
    percentiles: dict[str, Any] = {
        f"{name}_p{share}": float(np.percentile(values, share)) if values else None
        for name, values in figures.items()
        for share in (50, 95)
    }
    return Perf(
        queries=len(runs[0]),
        runs=len(runs),
        spread=spread,
        answer_tokens_mean=float(np.mean([answer.tokens for answer in answers])),
        peak_memory_bytes=memory,
        peak_gpu_bytes=gpu,
        weights_bytes=weights,
        **percentiles,
        **more,
    )


def _first_tokens(answers: Sequence[Answer]) -> list[float]:
    return [answer.first_token_s for answer in answers if answer.first_token_s is not None]


def _totals(answers: Sequence[Answer]) -> list[float]:
    return [answer.total_s for answer in answers]


def _speeds(answers: Sequence[Answer]) -> list[float]:
    """Tokens per second after the first; an answer of one token has no speed."""
    return [
        (answer.tokens - 1) / (answer.total_s - answer.first_token_s)
        for answer in answers
        if answer.first_token_s is not None and answer.tokens > 1 and answer.total_s > answer.first_token_s
    ]


_FIGURES: dict[str, Callable[[Sequence[Answer]], list[float]]] = {
    "first_token_s": _first_tokens,
    "total_s": _totals,
    "tokens_per_s": _speeds,
}


def costs(
    perf: Perf, whole: Watched, work: Watched, *, device: str, missing: dict[str, str]
) -> dict[str, Any]:
    """Energy and device memory as fields of Perf; why one is not there goes to `missing`."""
    fields: dict[str, Any] = {"board": whole.board, "throttling": work.throttling}
    answers = perf.queries * perf.runs
    if work.energy is None:
        missing["energy"] = NO_MONITOR
    else:
        energy = work.energy
        fields["energy"] = EnergyUse(
            gross_j=energy.gross_j / answers,
            net_j=None if energy.net_j is None else energy.net_j / answers,
            gross_j_per_token=energy.gross_j / (answers * perf.answer_tokens_mean),
            mean_w=energy.mean_w,
            idle_w=energy.idle_w,
            rail=energy.rule,
            rate_hz=energy.rate_hz,
        )
    if whole.memory_bytes is None:
        missing["device memory"] = CPU_MEMORY if device == "cpu" else NO_MEMORY
    else:
        fields |= {"device_memory_bytes": whole.memory_bytes, "device_memory_rule": whole.memory_rule}
    return fields


def _folder_bytes(path: Path | None) -> int | None:
    """The size of a subject's folder; None where it has none on this machine."""
    if path is None:
        return None
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _timed(subject: Subject, query: Query) -> Answer:
    # A build keeps images and prompts: warmed up with, a query would be timed as a second question.
    subject.forget()
    (answer,) = subject.answer([query])
    return answer


def _roofline(subject: Subject, perf: Perf, missing: dict[str, str]) -> Roofline | None:
    if perf.tokens_per_s_p50 is None:
        missing["roofline"] = "no answer had a second token"
        return None
    size = decoder_bytes(subject.spec.path, subject.facts)
    if size is None:
        missing["roofline"] = "the folder does not tell which weights a token reads"
        return None
    bandwidth = measured_bandwidth(subject.spec.device, threads=subject.spec.threads)
    if bandwidth is None:
        missing["roofline"] = NO_BANDWIDTH
        return None
    return roofline(perf.tokens_per_s_p50, size, bandwidth)


def _restore(part: dict[str, str]) -> Part:
    if "text" in part:
        return part["text"]
    with Image.open(part["image"]) as image:
        return image.convert("RGB")


def _peak_memory(subject: Subject) -> int | None:
    """Of the process that answers; None behind an address."""
    if isinstance(subject, DeviceSubject):
        return subject.peak_memory_bytes
    return None if subject.spec.url is not None else peak_memory_bytes()


def _peak_gpu_bytes() -> int | None:
    # A build runs without torch; asking for it here would import it.
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]))
    except GenrecalError as error:
        # The parent reads the last line of stderr.
        print(json.dumps(str(error), ensure_ascii=False)[1:-1], file=sys.stderr)
        sys.exit(error.exit_code)
