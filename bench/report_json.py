"""report.json: what the page shows, for machines; docs/bench.md has its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.differences import Compared
from bench.frontier import COSTS, frontier, mean_scores
from bench.gate import Gate, gate_json
from bench.report import Report, Result
from bench.samples import Samples

FORMAT = 1


def as_data(
    reports: Sequence[Report],
    compared: Mapping[str, Compared],
    gate: Gate | None,
    samples: Samples,
) -> dict[str, Any]:
    """report.json: shares from 0 to 1, seconds, bytes, joules; null where there is no figure."""
    means, shared = mean_scores(reports)
    return {
        "format": FORMAT,
        "baseline": reports[0].name,
        "subjects": [
            {
                "name": report.name,
                "kind": report.facts.kind,
                "precision": report.facts.precision,
                "device": report.facts.device,
                "fingerprint": report.fingerprint,
                "scores": {key: _score_data(result) for key, result in report.results.items()},
                "perf": asdict(report.perf) if report.perf else None,
            }
            for report in reports
        ],
        "differences": [
            {"subject": name, "benchmark": key, **asdict(difference)}
            for name, one in compared.items()
            for key, difference in one.differences.items()
        ],
        "gate": gate_json(gate) if gate else None,
        "frontier": {
            "benchmarks": list(shared),
            **{
                key: [asdict(point) for point in frontier(reports, cost, means)]
                for key, cost in COSTS.items()
            },
        },
        "samples": {
            "questions": samples.total,
            "shown": len(samples.samples),
            "left_out": samples.left_out,
            "shown_with_images_left_out": samples.left_out_images,
            "notes": list(samples.notes),
        },
    }


def _score_data(result: Result) -> dict[str, Any]:
    score = result.score
    interval = result.interval
    return {
        "title": score.title,
        "score": score.score,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": score.n,
        "part_of": score.details["part"]["of"] if "part" in score.details else None,
        "clusters": score.n - len(result.clusters) + len(set(result.clusters.values())),
        "version": score.version,
        "split": score.split,
        "language": score.language,
        "compat": score.compat,
        "prompt_sha256": score.prompt_sha256,
        "data_sha256": result.data_sha256,
        "generation": score.generation,
        "judge": score.judge,
        "groups": {
            kind: {name: asdict(group) for name, group in members.items()}
            for kind, members in score.groups.items()
        },
    }
