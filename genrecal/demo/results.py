"""What one seed of the demo found, as one JSON value: the report and the summary are made from it alone.

    {"seed": 0, "versions": {…}, "seconds": {step: s},
     "labels": {"given": share of right answers, "teacher": the same of the teacher's answers},
     "subjects": {key: {"label", "parameters", "mean", "weights_bytes", "tokens_per_s", "first_token_s",
                        "peak_memory_bytes", "scores": {set: {"title", "score", "low", "high", "n"}}}},
     "gain": {baseline: {"difference", "low", "high"}}        GenRecal minus it, paired over all questions
     "agreement": {set, and "long answers": {"share", "n"}}   whole answers that int8 and fp32 builds share
     "curves": {run: [{"stage", "step", "terms": {…}}]},
     "reading": [{"stage", "step", "grad_distill", …}],       Does the Recalibrator read the student?
     "samples": [{"image": PNG in base64, "question", "reference", "answers": {key: text}}]}

Shares and scores are fractions from 0 to 1.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from bench.paired import paired_difference
from bench.report import Report, read_report
from bench.run import read_answers
from bench.tasks import TASKS
from bench.types import Answer
from genrecal.demo.datasets import TestSets
from genrecal.train.stage import METRICS

SAMPLES = 10
LONG_TOKENS = 10


def gather_results(
    *,
    seed: int,
    folder: Path,
    subjects: Mapping[str, str],
    runs: Mapping[str, Path],
    checkpoints: Mapping[str, Path],
    test: TestSets,
    labels: Mapping[str, float],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Read a finished seed's folders.

    Args:
        seed: the seed.
        folder: its folder, with bench/<subject>/.
        subjects: key -> label.
        runs: run name -> run folder.
        checkpoints: the subjects that are checkpoints -> their folder.
        test: the test sets.
        labels: shares of right answers in the distillation set.
        seconds: what each step took.
    """
    reports = {key: read_report(folder / "bench" / key) for key in subjects}
    answers = {
        key: {name: read_answers(folder / "bench" / key, name) for name in reports["genrecal"].results}
        for key in (*subjects, "fp32")
    }
    curves = {name: _metrics(run) for name, run in runs.items()}
    return {
        "seed": seed,
        "seconds": dict(seconds),
        "labels": dict(labels),
        "subjects": {
            key: _subject(label, reports[key], checkpoints.get(key)) for key, label in subjects.items()
        },
        "gain": {key: _gain(reports["genrecal"], reports[key]) for key in ("baseline", "sft", "sft-teacher")},
        "agreement": _agreement(answers["genrecal-int8"], answers["fp32"]),
        "curves": {
            name: [{key: row[key] for key in ("stage", "step", "terms")} for row in rows]
            for name, rows in curves.items()
        },
        "reading": [
            {"stage": row["stage"], "step": row["step"], **row["reading"]}
            for row in curves["genrecal"]
            if "grad_distill" in row.get("reading", {})
        ],
        "samples": _samples(test, {key: answers[key]["mmvet"] for key in subjects}),
    }


def _subject(label: str, report: Report, checkpoint: Path | None) -> dict[str, Any]:
    scores = {
        name: {
            "title": result.score.title,
            "score": result.score.score,
            "low": result.interval.low if result.interval else None,
            "high": result.interval.high if result.interval else None,
            "n": result.score.n,
        }
        for name, result in report.results.items()
    }
    perf = report.perf
    return {
        "label": label,
        "parameters": _parameters(checkpoint) if checkpoint else None,
        "scores": scores,
        "mean": float(np.mean([score["score"] for score in scores.values()])),
        "weights_bytes": report.facts.weights_bytes,
        "tokens_per_s": perf.tokens_per_s_p50 if perf else None,
        "first_token_s": perf.first_token_s_p50 if perf else None,
        "peak_memory_bytes": perf.peak_memory_bytes if perf else None,
    }


def _parameters(folder: Path) -> int:
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as weights:
            names = weights.keys()
            count += sum(int(np.prod(weights.get_slice(name).get_shape())) for name in names)
    return count


def _gain(one: Report, other: Report) -> dict[str, float]:
    """`one` minus `other` over every question of every set, each set with the same weight per question."""

    def hits(report: Report) -> dict[str, float]:
        return {
            f"{name}/{question}": hit
            for name, result in report.results.items()
            for question, hit in result.score.hits.items()
        }

    found = paired_difference(hits(one), hits(other))
    return {"difference": found.mean, "low": found.interval.low, "high": found.interval.high}


def _agreement(
    int8: Mapping[str, Mapping[str, Answer]], fp32: Mapping[str, Mapping[str, Answer]]
) -> dict[str, dict[str, float]]:
    same = {
        name: {question: int8[name][question].text == answer.text for question, answer in replies.items()}
        for name, replies in fp32.items()
    }
    agreement = {
        name: {"share": sum(found.values()) / len(found), "n": len(found)} for name, found in same.items()
    }
    # Answers of more than ten tokens, the end-of-turn token not counted.
    long = [
        same[name][question]
        for name, replies in fp32.items()
        for question, answer in replies.items()
        if answer.tokens - 1 > LONG_TOKENS
    ]
    if long:
        agreement["long answers"] = {"share": sum(long) / len(long), "n": len(long)}
    return agreement


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]


def _samples(test: TestSets, answers: Mapping[str, Mapping[str, Answer]]) -> list[dict[str, Any]]:
    rows = TASKS["mmvet"].load(test.mmvet)
    return [
        {
            "image": base64.b64encode(_bytes_of(row.images[1])).decode(),
            "question": row.question,
            "reference": row.gold,
            "answers": {key: replies[row.id].text for key, replies in answers.items()},
        }
        for row in rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]
    ]


def _bytes_of(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()
