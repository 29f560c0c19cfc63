"""A run: the method's stages one after the other, each from what the one before left on disk.

    RUN/config.yaml     the resolved config
    RUN/metrics.jsonl   one line for each optimizer step
    RUN/stages/…        what each stage left (artifacts.py)
    RUN/student/        the finished student
    RUN/manifest.json   kind "run", written last

The same command again goes on where the run stopped: finished stages are skipped, the current one resumes
from its newest checkpoint.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from genrecal.core.card import write_student_card
from genrecal.core.config import dump_config, load_config
from genrecal.core.console import console
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import write_text
from genrecal.core.manifest import NAME, installed_versions, verify_manifest, write_manifest
from genrecal.core.types import Sample
from genrecal.data.batch import Batch, collate_one
from genrecal.data.mixture import read_mixture, without_domains
from genrecal.data.order import step_count
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_processor
from genrecal.train.artifacts import publish, save_stage
from genrecal.train.engine import engine_config, frozen_fingerprint, join_ranks, start
from genrecal.train.loop import StageRun, train
from genrecal.train.settings import RunConfig
from genrecal.train.setup import RECALIBRATOR_FILE, build_stage
from genrecal.train.stages import METHODS, STAGES

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
PROBE_SAMPLES = 4


def is_finished(output: Path) -> bool:
    return (output / NAME).is_file()


def check_run(config: RunConfig) -> None:
    """What can be wrong is found before any rank starts.

    Raises:
        GenrecalError: a model folder, a data file or the run folder cannot be used.
    """
    saved = config.output / CONFIG
    if saved.is_file():
        before = load_config(saved, RunConfig)
        changed = [key for key in RunConfig.model_fields if getattr(before, key) != getattr(config, key)]
        if changed:
            raise ConfigError(
                f"holds a run with other settings ({', '.join(changed)})",
                where=config.output,
                fix="Give another output folder, or delete this one",
            )
    elif config.output.exists() and any(config.output.iterdir()):
        raise ConfigError(
            "is not empty and holds no run", where=config.output, fix="Give another output folder"
        )
    for folder in (config.student, config.teacher):
        if folder is not None:
            load_processor(folder)
    samples = read_mixture(config.data.sources)
    for name in METHODS[config.method]:
        without_domains(samples, config.stage(name).exclude_domains or ())


def run_method(config: RunConfig) -> None:
    """Run every stage on this rank; all ranks call it with the same config."""
    join_ranks()
    dist.barrier()  # every rank has looked at the run folder before one writes to it
    leader = dist.get_rank() == 0
    if leader:
        # What a kill left of folders that were being written.
        for folder in (config.output, config.output / "stages"):
            for leftover in folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        write_text(config.output / CONFIG, dump_config(config))
    samples = read_mixture(config.data.sources)
    student_folder, recalibrator_folder = config.student, None
    for number, name in enumerate(METHODS[config.method], start=1):
        folder = config.output / "stages" / f"{number}-{name}"
        if (folder / NAME).is_file():
            verify_manifest(folder, kind="stage")
            if leader:
                console.print(f"{name}: finished before, skipped")
        else:
            _run_stage(config, name, folder, samples, student_folder, recalibrator_folder)
        if (folder / "student").is_dir():
            student_folder = folder / "student"
        if (folder / RECALIBRATOR_FILE).is_file():
            recalibrator_folder = folder
    if leader:
        publish(student_folder, config.output / "student")
        write_student_card(config.output / "student", _provenance(config))
        shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
        write_manifest(config.output, kind="run", config=config.model_dump(mode="json"))
        console.print(f"student: {config.output / 'student'}")
    dist.barrier()


def _run_stage(
    config: RunConfig,
    name: str,
    folder: Path,
    samples: tuple[Sample, ...],
    student_folder: Path,
    recalibrator_folder: Path | None,
) -> None:
    stage, settings = STAGES[name], config.stage(name)
    kept = without_domains(samples, settings.exclude_domains or ())
    reader = PairReader(
        kept,
        student=load_processor(student_folder),
        teacher=load_processor(config.teacher) if stage.reads_teacher and config.teacher else None,
        max_tokens=config.data.max_tokens,
    )
    deepspeed_settings = engine_config(config.engine, config.optimizer, settings)
    models = build_stage(
        config,
        stage,
        student_folder=student_folder,
        recalibrator_folder=recalibrator_folder,
        engine_settings=deepspeed_settings,
    )
    trained, frozen = _count(models.objective)
    engine = start(models.objective, deepspeed_settings)
    steps = step_count(
        samples=len(kept),
        epochs=settings.epochs,
        ranks=dist.get_world_size(),
        micro_batch=settings.micro_batch,
        accumulation=settings.accumulation,
    )
    if settings.warmup_steps >= steps:
        raise ConfigError(
            f"warms up over {settings.warmup_steps} of {steps} steps",
            where=f"stages.{name}.warmup_steps",
            fix="Lower it",
        )
    if dist.get_rank() == 0:
        console.print(
            f"{name}: {len(kept):,} samples, {steps} steps on {dist.get_world_size()} ranks,"
            f" {trained:,} parameters trained, {frozen:,} frozen"
        )
    run = StageRun(
        name=name,
        stage=stage,
        settings=settings,
        config=config,
        steps=steps,
        reader=reader,
        checkpoints=config.output / "checkpoints" / name,
        metrics=config.output / METRICS,
    )
    before = frozen_fingerprint(engine.module)
    train(engine, run)
    if frozen_fingerprint(engine.module) != before:
        raise GenrecalError("frozen parameters changed while the stage trained", where=name)
    save_stage(
        models,
        folder,
        student_folder=student_folder,
        probe=_probe(reader),
        precision=config.engine.precision,
        facts=_facts(name, steps, trained, frozen, before),
    )
    engine.destroy()
    del engine, models
    gc.collect()


def _provenance(config: RunConfig) -> dict[str, Any]:
    return {
        "run": config.output.name,
        "method": config.method,
        "teacher": str(config.teacher) if config.teacher else None,
        "base_student": str(config.student),
        "seed": config.seed,
        "run_versions": installed_versions(),
    }


def _count(module: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters; ZeRO-3 keeps the whole size in `ds_numel`."""
    counts = {True: 0, False: 0}
    for parameter in module.parameters():
        counts[parameter.requires_grad] += getattr(parameter, "ds_numel", parameter.numel())
    return counts[True], counts[False]


def _facts(name: str, steps: int, trained: int, frozen: int, fingerprint: str) -> dict[str, Any]:
    return {
        "stage": name,
        "steps": steps,
        "trained_parameters": trained,
        "frozen_parameters": frozen,
        "frozen_sha256": fingerprint,
    }


def _probe(reader: PairReader) -> Batch:
    rows = [reader[index].student for index in range(min(PROBE_SAMPLES, len(reader)))]
    return collate_one(rows, padding=reader.student.tokenizer.pad_token_id)
