"""What one seed of the demo found, as one JSON value: the report and the summary are made from it alone.

    {"seed": 0, "versions": {…}, "seconds": {step: s},
     "labels": {"given": share of right answers, "teacher": the same of the teacher's answers},
     "subjects": {key: {"label", "parameters", "mean", "weights_bytes", "tokens_per_s", "first_token_s",
                        "peak_memory_bytes", "scores": {set: {"title", "score", "low", "high", "n"}}}},
     "gain": {baseline: {"difference", "low", "high"}}        GenRecal minus it, paired over all questions
     "agreement": {set: share of whole answers that int8 and fp32 builds share, "long": {"share", "n"}},
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
from rich.table import Table
from safetensors import safe_open

from bench import mmvet
from bench.report import Report, read_report
from bench.run import read_answers
from bench.stats import paired_difference
from bench.types import Answer
from genrecal.core.console import console
from genrecal.core.files import read_json
from genrecal.demo.datasets import TestSets
from genrecal.train.run import METRICS

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


def print_summary(folders: list[Path]) -> None:
    """The table at the end of a demo: means over the seeds, and the spread where there are several."""
    results = [read_json(folder / "results.json") for folder in folders]
    table = Table(title=f"{len(results)} seed(s); intervals are 95%, over questions")
    first = results[0]["subjects"]
    sets = list(next(iter(first.values()))["scores"])
    for column in ("", *(first["teacher"]["scores"][name]["title"] for name in sets), "mean"):
        table.add_column(column)
    for column in ("weights", "tokens/s", "first token", "peak memory"):
        table.add_column(column, justify="right")
    for key, row in first.items():
        rows = [result["subjects"][key] for result in results]
        cells = [score_cell([one["scores"][name] for one in rows]) for name in sets]
        means = [100 * one["mean"] for one in rows]
        spread = f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
        table.add_row(
            row["label"],
            *cells,
            f"{np.mean(means):.1f}{spread}",
            f"{row['weights_bytes'] / 1e6:.2f} MB",
            *(_middle(rows, name, scale, unit) for name, scale, unit in PERF_COLUMNS),
        )
    console.print(table)
    for line in summary_lines(results):
        console.print(line)


PERF_COLUMNS = (
    ("tokens_per_s", 1.0, ""),
    ("first_token_s", 1e3, " ms"),
    ("peak_memory_bytes", 1e-6, " MB"),
)


def score_cell(scores: list[Mapping[str, Any]]) -> str:
    """One seed: score and its interval; several: mean and standard deviation."""
    values = [100 * score["score"] for score in scores]
    if len(values) == 1:
        return f"{values[0]:.1f} [{100 * scores[0]['low']:.1f}, {100 * scores[0]['high']:.1f}]"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def summary_lines(results: list[Mapping[str, Any]]) -> list[str]:
    """What the figures say, in words; every number is one of the results'."""
    lines = []
    for key, name in (("sft", "SFT"), ("sft-teacher", "SFT on the teacher's answers")):
        gains = [100 * result["gain"][key]["difference"] for result in results]
        lows, highs = ([100 * result["gain"][key][end] for result in results] for end in ("low", "high"))
        mean = float(np.mean(gains))
        verdict = "beats" if mean > 0 else "does not beat"
        clear = all(low > 0 for low in lows) or all(high < 0 for high in highs)
        by_seed = ", ".join(
            f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"
            for gain, low, high in zip(gains, lows, highs, strict=True)
        )
        lines.append(
            f"GenRecal {verdict} {name}: {by_seed} points, paired over all questions"
            + ("" if clear else "; the interval holds zero, so these questions cannot tell")
        )
    for stage in ("recalibrate", "distill"):
        last = [[row for row in result["reading"] if row["stage"] == stage][-1] for result in results]
        lines.append(
            f"Does the Recalibrator read the student? End of {stage}: gradient at z_q"
            f" {_mean(last, 'grad_distill'):.3g} by distillation, {_mean(last, 'grad_sft'):.3g} by SFT;"
            f" KL rise with shuffled z_q {_mean(last, 'kl_rise_first'):+.3f} nats at the first answer token,"
            f" {_mean(last, 'kl_rise_later'):+.4f} at later ones"
        )
    shares = {
        name: float(np.mean([result["agreement"][name]["share"] for result in results]))
        for name in results[0]["agreement"]
    }
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    lines.append(f"Whole answers that the int8 build shares with the fp32 build: {listed}")
    right = {
        key: float(np.mean([result["labels"][key] for result in results])) for key in ("given", "teacher")
    }
    lines.append(
        f"Right answers in the distillation set: {right['given']:.1%} of those given,"
        f" {right['teacher']:.1%} of the teacher's own"
    )
    total = sum(sum(result["seconds"].values()) for result in results)
    lines.append(f"Time: {total / 60:.1f} minutes")
    return lines


def _mean(rows: list[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _middle(rows: list[Mapping[str, Any]], key: str, scale: float, unit: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f"{scale * float(np.median(values)):.0f}{unit}" if values else "-"


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
    questions = mmvet.load(test.mmvet)
    return [
        {
            "image": base64.b64encode(question.image.read_bytes()).decode(),
            "question": question.question,
            "reference": question.reference,
            "answers": {key: replies[question.id].text for key, replies in answers.items()},
        }
        for question in questions[:: max(1, len(questions) // SAMPLES)][:SAMPLES]
    ]
