"""A run: the method's stages one after the other, each from what the one before left on disk.

    RUN/config.yaml     the resolved config
    RUN/data.json       what data it started with
    RUN/metrics.jsonl   one line for each optimizer step
    RUN/stages/…        what each stage left (artifacts.py)
    RUN/student/        the finished student
    RUN/manifest.json   kind "run", written last

The same command again goes on where the run stopped: finished stages are skipped, the current one resumes
from its newest checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from genrecal.core.card import write_student_card
from genrecal.core.config import dump_config, load_config
from genrecal.core.console import console
from genrecal.core.errors import ConfigError
from genrecal.core.files import write_text
from genrecal.core.licence import licence_of
from genrecal.core.manifest import NAME, installed_versions, verify_manifest, write_manifest
from genrecal.data.mixture import read_mixture, without_domains
from genrecal.data.pair import SharedTokens
from genrecal.data.quarantine import FOLDER, Quarantine
from genrecal.data.unchanged import NAME as DATA
from genrecal.data.unchanged import note_data, require_same_data
from genrecal.models.processors import load_processor
from genrecal.models.remote_code import check_remote_code
from genrecal.train.artifacts import publish
from genrecal.train.engine import join_ranks
from genrecal.train.labels import teacher_labels
from genrecal.train.pairing import require_limits, require_served
from genrecal.train.points import evaluate_points, require_sets
from genrecal.train.ranks import expected_ranks, on_ranks
from genrecal.train.settings import RunConfig
from genrecal.train.setup import recalibrator_file
from genrecal.train.stage import METRICS, Resources, run_stage
from genrecal.train.stages import METHODS
from genrecal.train.stopping import listening
from genrecal.train.teacher_cache import check_caches
from genrecal.train.track import Trackers, open_trackers
from genrecal.train.writing import from_leader, writing

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
# Beside the run: runs on the same data share its tables, and no manifest covers them.
DATA_CACHE = "data-cache"
# Settings that leave what is trained as it is: a resumed run may have others.
MAY_CHANGE = ("track", "track_project", "evaluate", "preflight", "launch")
ENGINE_MAY_CHANGE = (
    "ranks",
    "zero_stage",
    "gradient_checkpointing",
    "offload_params",
    "hpz_partition",
    "save_every",
    "save_minutes",
    "keep_checkpoints",
    "nonfinite",
    "max_skipped",
    "timeout_minutes",
    "dead_after_seconds",
)
# What is left out changes nothing of the order of the rest; excluding ids would.
DATA_MAY_CHANGE = ("on_bad", "max_bad", "workers", "keep")
# Where the teacher's features lie and how they are computed; not how exact they are.
CACHE_MAY_CHANGE = ("path", "batch", "split", "shard_mib")


def is_finished(output: Path) -> bool:
    return (output / NAME).is_file()


def check_run(config: RunConfig) -> None:
    """What can be wrong is found before any rank starts.

    Raises:
        GenrecalError: a model folder, a data file or the run folder cannot be used, or the data changed.
    """
    saved = config.output / CONFIG
    if saved.is_file():
        before = load_config(saved, RunConfig)
        changed = _changed(before, config)
        if changed:
            raise ConfigError(
                f"holds a run with other settings ({', '.join(changed)})",
                where=config.output,
                fix="Give another output folder, or delete this one",
            )
        on_ranks(config, started=before.engine.ranks, ranks=expected_ranks(config))
    elif config.output.exists() and any(config.output.iterdir()):
        raise ConfigError(
            "is not empty and holds no run", where=config.output, fix="Give another output folder"
        )
    processor, *teachers = (load_processor(folder, code=config.code(folder)) for folder in _models(config))
    require_served(config, processor, teachers)
    require_limits(config.data, (processor, *teachers))
    if config.evaluate:
        require_sets(config.evaluate)
    check_caches(config)
    samples = read_mixture(config.data, cache=config.output.parent / DATA_CACHE)
    if not is_finished(config.output):
        require_same_data(config.output, samples, config.data)
    if os.environ.get("RANK", "0") == "0":
        for note in samples.notes:
            console.print(note, markup=False, soft_wrap=True)
    for name in METHODS[config.method].stages:
        without_domains(samples, config.stage(name).exclude_domains or ())


def _changed(before: RunConfig, now: RunConfig) -> list[str]:
    """The keys of what may not change in a run but has."""
    free = {name: getattr(now.engine, name) for name in ENGINE_MAY_CHANGE}
    bad = {name: getattr(now.data, name) for name in DATA_MAY_CHANGE}
    update: dict[str, Any] = {
        "engine": before.engine.model_copy(update=free),
        "data": before.data.model_copy(update=bad),
    }
    if before.teacher_cache and now.teacher_cache:
        cache = {name: getattr(now.teacher_cache, name) for name in CACHE_MAY_CHANGE}
        update["teacher_cache"] = before.teacher_cache.model_copy(update=cache)
    before = before.model_copy(update=update)
    return [
        key
        for key in RunConfig.model_fields
        if key not in MAY_CHANGE and getattr(before, key) != getattr(now, key)
    ]


def _as_started(config: RunConfig) -> RunConfig:
    """`config` with the number of ranks of the run's first start, which its accumulations are for."""
    saved = config.output / CONFIG
    ranks = load_config(saved, RunConfig).engine.ranks if saved.is_file() else dist.get_world_size()
    ranks = from_leader(ranks)
    return config.model_copy(update={"engine": config.engine.model_copy(update={"ranks": ranks})})


def _models(config: RunConfig) -> list[Path]:
    """The folders of the student and of the teachers."""
    return [config.student, *(source.path for source in config.sources)]


def run_method(config: RunConfig, shared: SharedTokens | None = None) -> None:
    """Run every stage on this rank; all ranks call it with the same config.

    Args:
        config: the run.
        shared: what `data.keep` has kept of the same data for the same models in this process; None: nothing.
    """
    with listening():
        _run_method(config, {} if shared is None else shared)


def _run_method(config: RunConfig, shared: SharedTokens) -> None:
    join_ranks(config.engine.timeout_minutes)
    config = _as_started(config)
    dist.barrier()  # every rank has looked at the run folder before one writes to it
    leader = dist.get_rank() == 0
    if leader:
        _clear_leftovers(config.output)
        with writing(config.output / CONFIG):
            write_text(config.output / CONFIG, dump_config(config))
    trackers = open_trackers(
        config.track if leader else (),
        run_folder=config.output,
        project=config.track_project,
        config=config.model_dump(mode="json"),
        resume=(config.output / METRICS).is_file(),
    )
    regrouped = on_ranks(config, started=config.engine.ranks, ranks=dist.get_world_size())
    try:
        student_folder = _run_stages(regrouped, shared, trackers)
    finally:
        trackers.close()
    dist.barrier()
    if leader:  # alone: scoring may take longer than a collective waits
        with writing(config.output / "student"):
            publish(student_folder, config.output / "student")
            write_student_card(config.output / "student", _provenance(config))
        shutil.rmtree(config.output / CHECKPOINTS, ignore_errors=True)
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
        with writing(config.output):
            write_manifest(
                config.output,
                kind="run",
                config=config.model_dump(mode="json"),
                remote_code=[
                    check_remote_code(folder, config.code(folder)).record for folder in _models(config)
                ],
            )
        console.print(f"student: {config.output / 'student'}")


def _clear_leftovers(output: Path) -> None:
    """Remove what a kill left of files and folders that were being written."""
    for folder in (output, output / "stages", *(output / "points").glob("*")):
        for leftover in folder.glob(".*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


def _run_stages(config: RunConfig, shared: SharedTokens, trackers: Trackers) -> Path:
    """Every stage that is not finished; returns the folder of the last student."""
    samples = read_mixture(config.data, cache=config.output.parent / DATA_CACHE)
    if dist.get_rank() == 0:
        with writing(config.output / DATA):
            note_data(config.output, samples, config.data)
    quarantine = Quarantine(
        config.output / FOLDER,
        skips=config.data.on_bad == "skip",
        limit=config.data.max_bad,
        rows_left_out=samples.skipped,
        rank=dist.get_rank(),
    )
    dist.barrier()  # every rank has read what was written down before one adds to it
    quarantine.require_within_limit()
    resources = Resources(
        config=config,
        samples=samples,
        quarantine=quarantine,
        labels=teacher_labels(config, samples) if config.learned_labels == "teacher" else None,
        shared=shared,
        trackers=trackers,
    )
    student_folder, recalibrator_folder = config.student, None
    for number, name in enumerate(METHODS[config.method].stages, start=1):
        folder = config.output / "stages" / f"{number}-{name}"
        if (folder / NAME).is_file():
            verify_manifest(folder, kind="stage")
            if dist.get_rank() == 0:
                console.print(f"{name}: finished before, skipped")
        else:
            run_stage(
                resources,
                name,
                folder,
                student_folder=student_folder,
                recalibrator_folder=recalibrator_folder,
            )
        if dist.get_rank() == 0:  # the stage is on disk: they are large, and the next one's need space
            shutil.rmtree(config.output / CHECKPOINTS / name, ignore_errors=True)
        if (folder / "student").is_dir():
            student_folder = folder / "student"
        if (folder / recalibrator_file(0, 0)).is_file():
            recalibrator_folder = folder
    return student_folder


def _provenance(config: RunConfig) -> dict[str, Any]:
    return {
        "run": config.output.name,
        "method": config.method,
        "teacher": ", ".join(str(source.path) for source in config.sources) or None,
        "base_student": str(config.student),
        "data": [source.path.name for source in config.data.sources],
        "licences": {
            **{f"teacher {source.path.name}": licence_of(source.path) for source in config.sources},
            "base student": licence_of(config.student),
        },
        "seed": config.seed,
        "run_versions": installed_versions(),
    }
