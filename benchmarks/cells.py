"""One cell: train a variant in a setting with a seed, score the student, write its JSON, delete the run.

RESULTS/SETTING/VARIANT/SEED.json
    cell, title, made_with      what it is; another plan would need it again
    scores, grades              of each set; grades in hundredths, in the order of the questions' ids
    stages                      by stage: updates, samples, seconds, terms first and last, what was read
    student_updates, seconds    sums of the above; labels_right, versions, source_sha256, command
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.answers import TOKENS, Examination
from benchmarks.made import check_made, write_made
from benchmarks.pairs import data_part, distill_set, model_folder, model_part
from benchmarks.settings import Plan, Steps
from genrecal.core.config import dump_config
from genrecal.core.errors import ConfigError
from genrecal.core.files import atomic_folder, read_json, sha256_bytes, write_json
from genrecal.core.manifest import installed_versions
from genrecal.data.llava import read_llava
from genrecal.data.pair import SharedTokens
from genrecal.train.label_store import Labels
from genrecal.train.labels import FOLDER as LABELS
from genrecal.train.run import CONFIG, METRICS, check_run, run_method
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS, STAGES

ROOT = Path(__file__).parents[1]
WARMUP_STEPS = 5
MAX_TOKENS = 512
# Stages whose updates are not those of the part of the plan that they stand for: LLaVA-KD has three stages of
# the student where the others have two.
HALVES = ("kd-pretrain", "kd-sft")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """Ordered by seed first, so that a stopped suite still has whole seeds."""

    seed: int
    setting: str
    variant: str

    @property
    def row(self) -> str:
        return f"{self.setting}/{self.variant}"

    def path(self, results: Path) -> Path:
        return results / self.setting / self.variant / f"{self.seed}.json"


def cells_of(plan: Plan, suites: Sequence[str], seeds: int) -> list[Cell]:
    """Every cell of the suites, each once: seed by seed, in the order of the rows.

    The untrained student has one seed: it, and the questions, are the same for all.
    """
    rows = dict.fromkeys(row for suite in suites for row in plan.suites[suite].rows)
    cells = [
        Cell(seed=seed, setting=row.partition("/")[0], variant=row.partition("/")[2])
        for seed in range(seeds)
        for row in rows
    ]
    return [one for one in cells if one.seed == 0 or plan.variants[one.variant].method is not None]


def made_with(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What of the plan decides a cell's result."""
    setting = plan.settings[cell.setting]
    variant = plan.variants[cell.variant]
    return {
        "teacher": plan.models[setting.teacher].model_dump(mode="json"),
        "student": plan.models[setting.student].model_dump(mode="json"),
        "data": plan.data[setting.data].model_dump(mode="json"),
        "pretrain_images": plan.pretrain_images,
        "questions": plan.questions,
        "batch": plan.batch,
        "betas": list(plan.betas),
        "lora": plan.lora.model_dump(mode="json"),
        "steps": {
            part: getattr(plan, part).model_dump(mode="json")
            for part in ("recalibrate", "distill", "finetune")
        },
        "method": variant.method,
        "student_updates": variant.student_updates,
        "run": variant.run,
    }


def is_done(plan: Plan, cell: Cell, results: Path) -> bool:
    """Whether the cell is there.

    Raises:
        ConfigError: it is there, made with another plan.
    """
    path = cell.path(results)
    if not path.is_file():
        return False
    if read_json(path)["made_with"] != made_with(plan, cell):
        raise ConfigError(
            "was made with another plan", where=path, fix="Delete it, or give another --results folder"
        )
    return True


def run_config(plan: Plan, cell: Cell, output: Path) -> RunConfig:
    """The run behind a cell, with as many updates as the plan says whatever the size of the data."""
    setting, variant = plan.settings[cell.setting], plan.variants[cell.variant]
    assert variant.method is not None
    data = distill_set(plan, output, setting.data, cell.seed)
    samples = read_llava(data)
    stages = {}
    for name in METHODS[variant.method].stages:
        steps, updates = stage_steps(plan, name, variant.student_updates)
        kept = sum(sample.domain not in STAGES[name].exclude_domains for sample in samples)
        stages[name] = {
            "epochs": updates * plan.batch / kept,
            "micro_batch": plan.batch,
            "accumulation": 1,
            "lr_start": steps.lr_start,
            "lr_end": steps.lr_end,
            "warmup_steps": min(WARMUP_STEPS, updates - 1),
        }
    content = {
        "method": variant.method,
        "student": model_folder(plan, output, setting.student),
        "teacher": model_folder(plan, output, setting.teacher)
        if needs_teacher(variant.method, variant.run)
        else None,
        "output": output / "runs" / cell.setting / f"{cell.variant}-{cell.seed}",
        "seed": cell.seed,
        "data": {"sources": [{"path": data}], "max_tokens": MAX_TOKENS, "keep": len(samples)},
        "relabel": {"batch": 64, "max_new_tokens": 48},
        "lora": plan.lora.model_dump(),
        "optimizer": {"betas": plan.betas},
        "engine": {
            "ranks": 1,
            "zero_stage": 0,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "save_every": 10**6,
            "probe_every": 25,
            "feature_samples": 0,
        },
        # Every model's scores are known, and a cell's time is one of its results.
        "preflight": {"mode": "off"},
        "stages": stages,
    }
    return RunConfig.model_validate(merged(content, variant.run))


def needs_teacher(method: str, run: dict[str, Any]) -> bool:
    return METHODS[method].needs != "nothing" or run.get("labels") == "teacher"


def stage_steps(plan: Plan, name: str, student_updates: float) -> tuple[Steps, int]:
    """The part of the plan that a stage follows, and its updates."""
    if STAGES[name].trains == ("recalibrator",):
        return plan.recalibrate, plan.recalibrate.updates
    if name in HALVES:
        first = plan.distill.updates // 2
        updates = first if name == HALVES[0] else plan.distill.updates - first
        # The second half moves all of the student's weights, at the rates at which the others do.
        return (plan.distill if name == HALVES[0] else plan.finetune), round(updates * student_updates)
    part = plan.finetune if "student_full" in STAGES[name].trains else plan.distill
    return part, round(part.updates * student_updates)


def merged(content: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `content`, mapping by mapping."""
    result = dict(content)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def run_cell(
    plan: Plan,
    cell: Cell,
    output: Path,
    results: Path,
    examination: Examination,
    shared: SharedTokens | None = None,
) -> dict[str, Any]:
    """Train and score a cell and write its JSON; returns it.

    Args:
        plan: methods.yaml.
        cell: what to run.
        output: models, data and the run while it lasts.
        results: where its JSON goes.
        examination: the test sets.
        shared: what cells of the same models and data have tokenized before in this process.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    setting, variant = plan.settings[cell.setting], plan.variants[cell.variant]
    record: dict[str, Any] = {"cell": cell.row, "seed": cell.seed, "made_with": made_with(plan, cell)}
    trained: dict[str, Any] = {"stages": {}, "student_updates": 0}
    between: dict[str, Path] = {}
    if variant.method is None:
        student = model_folder(plan, output, setting.student)
    else:
        config = run_config(plan, cell, output)
        trained = _train(plan, cell, config, output, shared)
        student, between = config.output / "student", _students_between(config)
    training_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    marks = examination.marks(student, like=setting.student)
    for stage, folder in between.items():
        of_stage = examination.marks(folder, like=setting.student)
        trained["stages"][stage]["scores_after"] = of_stage.scores | {
            part: sum(of_stage.grades[part]) / len(of_stage.grades[part]) for part in TOKENS
        }
    record |= {
        "scores": marks.scores,
        "nats": marks.nats,
        "grades": {
            name: " ".join(str(round(100 * grade)) for grade in grades)
            for name, grades in marks.grades.items()
        },
        "questions_sha256": examination.sha256,
        **trained,
        "seconds": {"training": training_s, "training_cpu": cpu_s, "cell": time.perf_counter() - started},
        "versions": installed_versions(),
        "source_sha256": source_sha256(),
        "command": f"python -m benchmarks.methods run --cell {cell.row} --seed {cell.seed}",
    }
    write_json(cell.path(results), record)
    if variant.method is not None:
        shutil.rmtree(config.output)
    return record


def _train(
    plan: Plan, cell: Cell, config: RunConfig, output: Path, shared: SharedTokens | None
) -> dict[str, Any]:
    shutil.rmtree(config.output, ignore_errors=True)  # what a stop left
    setting = plan.settings[cell.setting]
    labels = output / "labels" / f"{setting.teacher}-{setting.data}-{cell.seed}"
    relabels = config.learned_labels == "teacher"
    part = {
        "teacher": model_part(plan, setting.teacher),
        **data_part(plan, setting.data),
        "relabel": config.relabel.model_dump(mode="json"),
    }
    if relabels and check_made(labels, part):
        # A run goes on behind labels that are there: each teacher answers each set once.
        config.output.mkdir(parents=True)
        (config.output / CONFIG).write_text(dump_config(config), encoding="utf-8")
        shutil.copytree(labels / LABELS, config.output / LABELS)
    started = time.perf_counter()
    check_run(config)
    run_method(config, shared)
    whole_s = time.perf_counter() - started
    facts: dict[str, Any] = {"config": config.model_dump(mode="json")}
    facts |= _stages(config)
    if relabels:
        if not labels.is_dir():
            generating_s = whole_s - sum(stage["seconds"] for stage in facts["stages"].values())
            labels.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(labels) as temporary:
                write_made(temporary, part)
                shutil.copytree(config.output / LABELS, temporary / LABELS)
                write_json(temporary / "made.json", {"seconds": generating_s})
        facts["labels"] = _labels_right(config) | read_json(labels / "made.json")
    return facts


def _stages(config: RunConfig) -> dict[str, Any]:
    rows = [json.loads(line) for line in (config.output / METRICS).read_text(encoding="utf-8").splitlines()]
    stages: dict[str, Any] = {}
    student_updates = 0
    for number, name in enumerate(METHODS[config.method].stages, start=1):
        of_stage = [row for row in rows if row["stage"] == name]
        manifest = read_json(config.output / "stages" / f"{number}-{name}" / "manifest.json")
        learns = any(part.startswith("student") for part in config.plan(name).trains)
        student_updates += len(of_stage) if learns else 0
        stages[name] = {
            "updates": len(of_stage),
            "samples": len(of_stage) * config.stage(name).micro_batch,
            "student_learns": learns,
            "seconds": sum(row["seconds"] for row in of_stage),
            "terms_first": _mean_terms(of_stage[: max(1, len(of_stage) // 10)]),
            "terms_last": _mean_terms(of_stage[-max(1, len(of_stage) // 10) :]),
            "readings": [{"step": row["step"], **row["reading"]} for row in of_stage if "reading" in row],
            "verdict": manifest.get("reading"),
        }
    return {"stages": stages, "student_updates": student_updates}


def _students_between(config: RunConfig) -> dict[str, Path]:
    """The student after each stage but the last, which is the same SFT for nearly all methods."""
    folders = {
        name: config.output / "stages" / f"{number}-{name}" / "student"
        for number, name in enumerate(METHODS[config.method].stages[:-1], start=1)
    }
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def _mean_terms(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {term: sum(row["terms"][term] for row in rows) / len(rows) for term in rows[0]["terms"]}


def _labels_right(config: RunConfig) -> dict[str, float]:
    """Share of the teacher's answers that are the given ones, and of those that are given wrong by design."""
    path = Path(config.data.sources[0].path)
    samples, own = read_llava(path), Labels(config.output / LABELS)
    wrong = {row["id"] for row in read_json(path) if row.get("mislabelled")}
    clean = [sample for sample in samples if sample.id not in wrong]
    return {
        "given_right": len(clean) / len(samples),
        # Of the mislabelled samples the truth is not in the file: those that are right are the yardstick.
        "teacher_agrees_with_right": sum(own.answer(sample) == sample.answer for sample in clean)
        / len(clean),
    }


def source_sha256() -> str:
    """Of the code that draws the data, trains and scores, to tell results of two versions apart."""
    packages = (
        "genrecal/core",
        "genrecal/data",
        "genrecal/demo",
        "genrecal/models",
        "genrecal/train",
        "bench",
    )
    files = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    listed = "".join(f"{path.relative_to(ROOT)} {sha256_bytes(path.read_bytes())}\n" for path in files)
    return sha256_bytes(listed.encode())
