"""A subject's cost as lines of text: the figure, and how it was measured or why it was not."""

from __future__ import annotations

from bench.perf import Perf
from bench.plots import number
from bench.report import NO_FIGURE, Report


def cost_rows(report: Report) -> list[tuple[str, str, str]]:
    """Figure, value, and how it was measured or why it was not."""
    perf = report.perf
    if perf is None:
        return [("speed, memory, energy", NO_FIGURE, "not timed (--timed 0)")]
    runs = f"{perf.queries} questions, {perf.runs} runs after {perf.warm_up} to warm up"
    rows = [
        ("first token, p50 / p95", _times(perf.first_token_s_p50, perf.first_token_s_p95), runs),
        ("whole answer, p50 / p95", _times(perf.total_s_p50, perf.total_s_p95), _spread(perf, "total_s")),
    ]
    speed = NO_FIGURE
    if perf.tokens_per_s_p50 is not None:
        speed = f"{number(perf.tokens_per_s_p50)} / s"
    rows.append(("tokens", speed, _spread(perf, "tokens_per_s")))
    rows.append(("peak memory", _megabytes(perf.peak_memory_bytes), "of the process, with its libraries"))
    memory = perf.device_memory_bytes
    rows.append(
        (
            "device memory",
            _megabytes(memory),
            perf.device_memory_rule or perf.missing.get("device memory", "not measured"),
        )
    )
    if perf.energy is not None:
        energy = perf.energy
        net = f", net {number(energy.net_j)} J" if energy.net_j is not None else ""
        per_token = f"{number(energy.gross_j_per_token)} J a token"
        how = f"{energy.rail}, {energy.rate_hz:.0f} samples a second, {per_token}"
        rows.append(("energy of an answer", f"{number(energy.gross_j)} J{net}", how))
    else:
        rows.append(("energy of an answer", NO_FIGURE, perf.missing.get("energy", "not measured")))
    if perf.roofline is not None:
        line = perf.roofline
        how = f"{_megabytes(line.bytes_per_token)} a token, {number(line.bandwidth.bytes_per_s / 1e9)} GB/s"
        rows.append(("share of the roofline", f"{100 * line.share:.0f}%", f"{how} ({line.bandwidth.how})"))
    else:
        rows.append(("share of the roofline", NO_FIGURE, perf.missing.get("roofline", "not measured")))
    size = _megabytes(perf.size_bytes) if perf.size_bytes is not None else NO_FIGURE
    weights = _megabytes(perf.weights_bytes) if perf.weights_bytes is not None else "not known"
    rows.append(("size on disk", size, f"weights {weights}, {report.facts.precision}"))
    if perf.board is not None:
        rows.append(("board", perf.board, f"throttling: {perf.throttling}"))
    return rows


def _times(p50: float, p95: float) -> str:
    return f"{number(1e3 * p50)} / {number(1e3 * p95)} ms"


def _spread(perf: Perf, figure: str) -> str:
    if figure not in perf.spread:
        return "no answer had a second token" if figure == "tokens_per_s" else ""
    low, high = perf.spread[figure]
    unit, factor = (" a second", 1.0) if figure == "tokens_per_s" else (" ms", 1e3)
    return f"medians of the runs: {number(factor * low)} to {number(factor * high)}{unit}"


def _megabytes(size: int | None) -> str:
    return NO_FIGURE if size is None else f"{number(size / 1e6)} MB"
