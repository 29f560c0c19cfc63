"""Run folders as a run, a bench and the points leave them, with small values that are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from bench.report import Report, Result
from bench.stats import Interval
from bench.types import Facts, Score
from genrecal.core.files import write_json

TITLES = {"mmb": "MMB", "mmmu": "MMMU", "mmvet": "MM-Vet"}
QUESTIONS = {"mmb": 200, "mmmu": 120, "mmvet": 50}
STAGES = {
    "genrecal": ("recalibrate", "distill", "finetune"),
    "genrecal-no-reg": ("recalibrate-no-reg", "distill", "finetune"),
    "sft": ("adapt", "finetune"),
}
STEPS = 60


def write_bench(folder: Path, scores: dict[str, float], *, subject: str, data: str = "0" * 64) -> Path:
    """bench.json, through the bench's own types; `scores` are fractions."""
    results = {name: _result(name, score, data) for name, score in scores.items()}
    report = Report(
        name=subject,
        spec={"path": subject},
        facts=Facts(kind="checkpoint", weights_bytes=10, precision="fp32", device="cpu", generation={}),
        fingerprint=f"{subject} {sorted(scores.items())}",
        results=results,
        perf=None,
    )
    write_json(folder / "bench.json", asdict(report))
    return folder


def write_run(
    folder: Path,
    *,
    method: str = "genrecal",
    teacher: str | None = "InternVL2_5-78B",
    student: Path | None = None,
    seed: int = 0,
    excluded: Sequence[str] = (),
    after: dict[str, float] | None = None,
    metrics: bool = True,
    features: bool = True,
    points: bool = True,
    shared: float = 0.9,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A finished run.

    Args:
        folder: RUN.
        student: the student's folder; the run need not find it.
        after: scores of RUN/student-bench; None: it was not benched.
        shared: how much the Recalibrator's outputs from both questions have in common, 0 to 1.
        settings: what else the config says.
    """
    folder.mkdir(parents=True)
    student = student or folder.parent / "Qwen2-VL-2B"
    config = {
        "method": method,
        "student": str(student),
        "teacher": f"models/{teacher}" if teacher and method != "sft" else None,
        "output": str(folder),
        "seed": seed,
        "data": {"sources": [{"path": "data.json"}], "exclude_domains": list(excluded)},
        **(settings or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    stages = STAGES[method]
    if metrics:
        rows = [row for stage in stages for row in _metrics(stage, seed)]
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    for number, stage in enumerate(stages, start=1):
        place = folder / "stages" / f"{number}-{stage}"
        place.mkdir(parents=True)
        if features and (stage.startswith("recalibrate") or stage == "distill"):
            save_file(_features(seed, shared), place / "features.safetensors")
    if after:
        write_bench(folder / "student-bench", after, subject=f"{folder}/student")
    if points:
        write_json(folder / "points.json", _points(stages, excluded, seed))
    return folder


def _result(name: str, score: float, data: str) -> Result:
    n = QUESTIONS[name]
    half = 1.96 * (score * (1 - score) / n) ** 0.5
    return Result(
        score=Score(
            title=TITLES[name],
            benchmark=name,
            version="1",
            split="val",
            language="en",
            compat="official",
            prompt_sha256="1" * 64,
            generation="model",
            judge=None,
            score=score,
            n=n,
            groups={},
            hits={},
        ),
        interval=Interval(low=max(0.0, score - half), high=min(1.0, score + half)),
        source=f"{name}.tsv",
        data_sha256=data,
        prompt_sha256="1" * 64,
        generation={},
        versions={},
        answer_tokens=4.0,
    )


def _metrics(stage: str, seed: int) -> list[dict[str, Any]]:
    noise = np.random.default_rng([seed, len(stage)])
    rows = []
    for step in range(STEPS):
        done = step / STEPS
        terms = {"sft": 0.9 + 0.05 * noise.standard_normal()}
        row: dict[str, Any] = {"stage": stage, "step": step, "steps": STEPS, "lr": 1e-4, "seconds": 0.5}
        distils = stage.startswith("recalibrate") or stage == "distill"
        if distils:
            fall = float(np.exp(-6 * done))
            terms |= {"ar": 0.6 + 5 * fall + 0.1 * noise.random(), "kl": 0.2 + 4 * fall}
            terms["teacher_ar"] = 0.5 + 0.04 * noise.standard_normal()
        if stage == "recalibrate":
            terms |= {"reg_ar": 0.55 + 4 * float(np.exp(-9 * done)) + 0.1 * noise.random(), "reg_kl": 0.1}
        if step % 10 == 0 or step == STEPS - 1:
            row["reading"] = {"grad_sft": 0.3 + 0.05 * noise.random()}
            if distils:
                row["reading"] |= {
                    "grad_distill": 0.2,
                    "grad_distill_first": 0.2 * (1 + done),
                    "grad_distill_later": 0.004 * (1 + done),
                    "kl_rise_first": 0.8 * done,
                    "kl_rise_later": None if step == 0 else 0.002 * noise.standard_normal(),
                }
        rows.append({**row, "loss": sum(terms.values()), "terms": terms})
    return rows


def _features(
    seed: int, shared: float, *, pairs: int = 10, small: int = 16, large: int = 24
) -> dict[str, Any]:
    """Before: both models' features have nothing in common; after: as much as `shared` says."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for when, part in (("before", 0.0), ("after", shared)):
        for kinds, width in (
            (("z_q_student", "p_q_teacher"), small),
            (("h_q_student", "h_q_teacher"), small),
            (("r_q_student", "r_q_teacher"), large),
            (("r_a_student", "r_a_teacher"), large),
        ):
            common = draw.standard_normal((pairs, width))
            # Before the Recalibrator the models stay apart at the end of training, too.
            of_kind = 0.0 if kinds[0] == "z_q_student" else part
            for side, kind in enumerate(kinds):
                own = draw.standard_normal((pairs, width)) + 2 * side * (1 - of_kind)
                tensors[f"{when}.{kind}"] = (of_kind * common + (1 - of_kind) * own).astype(np.float32)
    return tensors


def _points(stages: Sequence[str], excluded: Sequence[str], seed: int) -> list[dict[str, Any]]:
    noise = np.random.default_rng([seed, *map(len, excluded), 7])
    records = []
    score = 0.40
    for number, stage in enumerate(stages, start=1):
        trains = not stage.startswith("recalibrate")
        for percent in (20, 40, 60, 80, 100):
            if trains:
                score += 0.012 - 0.003 * len(excluded) + 0.004 * noise.standard_normal()
            records.append(
                {
                    "stage": stage,
                    "number": number,
                    "percent": percent,
                    "step": percent * STEPS // 100,
                    "scores": {"mmb": score + 0.15, "mmmu": score},
                    "questions": {"mmb": 200, "mmmu": 120},
                    "unchanged": not trains,
                }
            )
    return records
