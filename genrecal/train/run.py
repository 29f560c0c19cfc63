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
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from genrecal.core.card import write_student_card
from genrecal.core.config import dump_config, load_config
from genrecal.core.console import console
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import read_json, write_text
from genrecal.core.manifest import NAME, installed_versions, verify_manifest, write_manifest
from genrecal.core.types import Sample
from genrecal.data.batch import Batch, collate_one
from genrecal.data.mixture import Mixture, read_mixture, without_domains
from genrecal.data.order import Part, step_count
from genrecal.data.pair import PairReader, SharedTokens
from genrecal.models.processors import load_processor
from genrecal.models.remote_code import check_remote_code
from genrecal.train.artifacts import publish, save_stage
from genrecal.train.engine import DTYPES, device, engine_config, frozen_fingerprint, join_ranks, start
from genrecal.train.features import recalibrated_features
from genrecal.train.labels import Labels, Relabelled, teacher_labels
from genrecal.train.loop import StageRun, padding, train
from genrecal.train.pairing import comparison_settings, require_limits, require_served
from genrecal.train.points import evaluate_points, require_sets, stage_points
from genrecal.train.reading import Verdict, verdict
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage, recalibrator_file
from genrecal.train.snapshots import save_point
from genrecal.train.stages import METHODS, Stage, StageConfig
from genrecal.train.track import Trackers, open_trackers, steps_before

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
# Beside the run: runs on the same data share its tables, and no manifest covers them.
DATA_CACHE = "data-cache"
PROBE_SAMPLES = 4
# Settings that leave what is trained as it is: a resumed run may have others.
MAY_CHANGE = ("track", "track_project", "evaluate")


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
        changed = [
            key
            for key in RunConfig.model_fields
            if key not in MAY_CHANGE and getattr(before, key) != getattr(config, key)
        ]
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
    processor, *teachers = (load_processor(folder, code=config.code(folder)) for folder in _models(config))
    require_served(config, processor, teachers)
    require_limits(config.data, (processor, *teachers))
    if config.evaluate:
        require_sets(config.evaluate)
    samples = read_mixture(config.data, cache=config.output.parent / DATA_CACHE)
    for name in METHODS[config.method].stages:
        without_domains(samples, config.stage(name).exclude_domains or ())


def _models(config: RunConfig) -> list[Path]:
    """The folders of the student and of the teachers."""
    return [config.student, *(source.path for source in config.sources)]


def run_method(config: RunConfig, shared: SharedTokens | None = None) -> None:
    """Run every stage on this rank; all ranks call it with the same config.

    Args:
        config: the run.
        shared: what `data.keep` has kept of the same data for the same models in this process; None: nothing.
    """
    shared = {} if shared is None else shared
    join_ranks()
    dist.barrier()  # every rank has looked at the run folder before one writes to it
    leader = dist.get_rank() == 0
    if leader:
        # What a kill left of folders that were being written.
        for folder in (config.output, config.output / "stages"):
            for leftover in folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        write_text(config.output / CONFIG, dump_config(config))
    trackers = open_trackers(
        config.track if leader else (),
        run_folder=config.output,
        project=config.track_project,
        config=config.model_dump(mode="json"),
        resume=(config.output / METRICS).is_file(),
    )
    try:
        student_folder = _run_stages(config, shared, trackers)
    finally:
        trackers.close()
    dist.barrier()
    if leader:  # alone: scoring may take longer than a collective waits
        publish(student_folder, config.output / "student")
        write_student_card(config.output / "student", _provenance(config))
        shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
        if config.evaluate:
            evaluate_points(
                config.output,
                config.evaluate,
                stages=[
                    (name, any(part.startswith("student") for part in config.plan(name).trains))
                    for name in METHODS[config.method].stages
                ],
                student=config.student,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        write_manifest(
            config.output,
            kind="run",
            config=config.model_dump(mode="json"),
            remote_code=[check_remote_code(folder, config.code(folder)).record for folder in _models(config)],
        )
        console.print(f"student: {config.output / 'student'}")


def _run_stages(config: RunConfig, shared: SharedTokens, trackers: Trackers) -> Path:
    """Every stage that is not finished; returns the folder of the last student."""
    samples = read_mixture(config.data, cache=config.output.parent / DATA_CACHE)
    labels = teacher_labels(config, samples) if config.learned_labels == "teacher" else None
    student_folder, recalibrator_folder = config.student, None
    for number, name in enumerate(METHODS[config.method].stages, start=1):
        folder = config.output / "stages" / f"{number}-{name}"
        if (folder / NAME).is_file():
            verify_manifest(folder, kind="stage")
            if dist.get_rank() == 0:
                console.print(f"{name}: finished before, skipped")
        else:
            _run_stage(
                config, name, folder, samples, labels, student_folder, recalibrator_folder, shared, trackers
            )
        if (folder / "student").is_dir():
            student_folder = folder / "student"
        if (folder / recalibrator_file(0, 0)).is_file():
            recalibrator_folder = folder
    return student_folder


def _run_stage(
    config: RunConfig,
    name: str,
    folder: Path,
    samples: Mixture,
    labels: Labels | None,
    student_folder: Path,
    recalibrator_folder: Path | None,
    shared: SharedTokens,
    trackers: Trackers,
) -> None:
    stage, settings = config.plan(name), config.stage(name)
    kept = without_domains(samples, settings.exclude_domains or ())
    reader = _reader(
        config, stage, kept if labels is None else Relabelled(kept, labels), student_folder, shared
    )
    deepspeed_settings = engine_config(config.engine, config.optimizer, settings)
    models = build_stage(
        config,
        stage,
        student_folder=student_folder,
        recalibrator_folder=recalibrator_folder,
        engine_settings=deepspeed_settings,
        comparison=comparison_settings(config, stage, reader.student, reader.teachers),
    )
    trained, frozen = _count(models.objective)
    engine = start(models.objective, deepspeed_settings)
    steps = _steps(name, kept.parts, settings)
    if dist.get_rank() == 0:
        console.print(
            f"{name}: {len(kept):,} samples, {steps} steps on {dist.get_world_size()} ranks,"
            f" {trained:,} parameters trained, {frozen:,} frozen"
        )
        if "student_lora" in stage.trains and stage.recalibrates and recalibrator_folder:
            _warn_unread(recalibrator_folder, config.recalibrator.answer_input)
    save = partial(
        save_stage,
        models,
        student_folder=student_folder,
        probe=_probe(reader),
        precision=config.engine.precision,
        code=config.code(config.student),
    )
    number = int(folder.name.partition("-")[0])
    run = StageRun(
        name=name,
        stage=stage,
        settings=settings,
        config=config,
        steps=steps,
        reader=reader,
        checkpoints=config.output / "checkpoints" / name,
        metrics=config.output / METRICS,
        steps_before=steps_before(folder.parent, number),
        trackers=trackers,
        points=stage_points(number, name, steps=steps, settings=config.evaluate),
        keep_point=partial(save_point, config.output, student=models.objective.student, save=save),
    )
    before = frozen_fingerprint(engine.module)
    features = _features(engine, run, "before")
    train(engine, run)
    features |= _features(engine, run, "after")
    if frozen_fingerprint(engine.module) != before:
        raise GenrecalError("frozen parameters changed while the stage trained", where=name)
    # Rank 0 alone has written the metrics; another rank could read half a line.
    found = _verdict(run) if dist.get_rank() == 0 else None
    if found is not None:
        console.print(f"{name}: {found.sentence()}")
    save(
        folder,
        facts=_facts(name, steps, trained, frozen, before) | ({"reading": asdict(found)} if found else {}),
        features=features,
    )
    engine.destroy()
    del engine, models, run, save
    gc.collect()


def _reader(
    config: RunConfig, stage: Stage, samples: Sequence[Sample], student_folder: Path, shared: SharedTokens
) -> PairReader:
    limits = {"max_tiles": config.data.max_tiles, "max_pixels": config.data.max_pixels}
    return PairReader(
        samples,
        student=load_processor(student_folder, **limits, code=config.code(config.student)),
        teachers=[
            load_processor(source.path, **limits, code=config.code(source.path))
            for source in config.sources
            if stage.reads_teacher
        ],
        max_tokens=config.data.max_tokens,
        keep=config.data.keep,
        shared=shared,
    )


def _steps(name: str, samples: Sequence[Part], settings: StageConfig) -> int:
    steps = step_count(
        samples=samples,
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
    return steps


def _features(engine: Any, run: StageRun, when: str) -> dict[str, torch.Tensor]:
    """Tensors for the figures, from the first samples; nothing without a Recalibrator."""
    count = min(run.config.engine.feature_samples, len(run.reader))
    if not run.stage.recalibrates or not count:
        return {}
    pad = padding(run.reader)
    rows = [run.reader[index] for index in range(count)]
    size = run.settings.micro_batch
    batches = [
        pad(rows[first : first + size]).to(device(), DTYPES[run.config.engine.precision])
        for first in range(0, count, size)
    ]
    tensors = recalibrated_features(engine, batches)
    return {f"{when}.{name}": tensor for name, tensor in tensors.items()}


def _verdict(run: StageRun) -> Verdict | None:
    """From the probes of the stage's last quarter."""
    if not run.stage.recalibrates:
        return None
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return verdict(
        [
            row["reading"]
            for row in rows
            if row["stage"] == run.name and row["step"] >= run.steps * 3 // 4 and "reading" in row
        ]
    )


def _warn_unread(stage_folder: Path, answer_input: str) -> None:
    """Say so when distillation starts with a Recalibrator that does not read the student."""
    reading = read_json(stage_folder / NAME).get("reading")
    if reading and not Verdict(**reading).reads_all:
        advice = {
            "features": "recalibrator.answer_input: aligned makes every token read it (docs/paper.md)",
            "embeddings": "Train stage 1 longer, or take answer_input: aligned (docs/paper.md)",
            "aligned": "Train stage 1 longer",
        }[answer_input]
        console.print(
            f"warning: {Verdict(**reading).sentence()}; the other answer tokens teach it nothing that way."
            f" {advice}",
            style="yellow",
        )


def _provenance(config: RunConfig) -> dict[str, Any]:
    return {
        "run": config.output.name,
        "method": config.method,
        "teacher": ", ".join(str(source.path) for source in config.sources) or None,
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
