"""One stage, from what the one before left on disk to a folder of its own (artifacts.py says what is in it).

    processors, models -> engine -> features before -> train (loop.py) -> features after, verdict -> folder

Features and verdict are for stages with a Recalibrator: what it makes of the two models (features.py), and
whether it reads the student (reading.py).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from genrecal.core.console import console
from genrecal.core.cosines import PairCosines, pair_cosines
from genrecal.core.errors import ConfigError, DataError, GenrecalError
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME
from genrecal.core.types import Sample
from genrecal.data.batch import Batch, collate_one
from genrecal.data.mixture import Mixture, without_domains
from genrecal.data.order import Part, read_by, step_count
from genrecal.data.pair import PairReader, Reads, SharedTokens
from genrecal.data.quarantine import Quarantine, note_totals, totals
from genrecal.models.processors import load_processor
from genrecal.train.artifacts import save_stage
from genrecal.train.engine import DTYPES, device, engine_config, frozen_fingerprint, start
from genrecal.train.features import recalibrated_features
from genrecal.train.feed import padding, readable
from genrecal.train.label_store import Labels
from genrecal.train.labels import Relabelled
from genrecal.train.loop import StageRun, train
from genrecal.train.pairing import comparison_settings
from genrecal.train.points import stage_points
from genrecal.train.preflight import preflight
from genrecal.train.reading import Verdict, verdict
from genrecal.train.recording import recorded_by_leader
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage
from genrecal.train.snapshots import save_point
from genrecal.train.stages import METHODS, Stage, StageConfig
from genrecal.train.teacher_cache import recorded_teachers, recording, serves, stored_teachers
from genrecal.train.track import Trackers, steps_before

METRICS = "metrics.jsonl"
PROBE_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What all stages of a run share."""

    config: RunConfig
    samples: Mixture
    quarantine: Quarantine
    labels: Labels | None  # the teacher's own answers, where they are learned
    shared: SharedTokens
    trackers: Trackers


def run_stage(
    resources: Resources,
    name: str,
    folder: Path,
    *,
    student_folder: Path,
    recalibrator_folder: Path | None,
) -> None:
    """Train one stage to its end, resuming what is there; every rank calls it.

    Args:
        resources: what the run's stages share.
        name: a key of STAGES.
        folder: RUN/stages/<number>-<name>, which it leaves.
        student_folder: the student as the stage before left it.
        recalibrator_folder: the stage that left the Recalibrators; None: they are new.
    """
    config = resources.config
    stage, settings = config.plan(name), config.stage(name)
    kept = without_domains(resources.samples, settings.exclude_domains or ())
    samples = _labelled(kept, resources.labels)
    cached = serves(config, stage)  # where it is filled first, before the stage's models are loaded
    ways = stored_teachers(config, stage, samples) if cached else recorded_teachers(config, stage)
    reader = _reader(config, stage, samples, student_folder, resources.shared, ways)
    deepspeed_settings = engine_config(config.engine, config.optimizer, settings)
    models = build_stage(
        config,
        stage,
        student_folder=student_folder,
        recalibrator_folder=recalibrator_folder,
        engine_settings=deepspeed_settings,
        comparison=comparison_settings(config, stage, reader.student, reader.teachers),
        heads_only=cached,
    )
    trained, frozen = _count(models.objective)
    engine = start(models.objective, deepspeed_settings)
    steps = _steps(name, kept.parts, settings)
    if dist.get_rank() == 0:
        console.print(
            f"{name}: {len(kept):,} samples, {steps} steps on {dist.get_world_size()} ranks,"
            f" {trained:,} parameters trained, {frozen:,} frozen"
        )
        if stage.distills and recalibrator_folder:
            _warn_unread(recalibrator_folder, config.recalibrator.answer_input)
    save = partial(
        save_stage,
        models,
        student_folder=student_folder,
        probe=_probe(reader, resources.quarantine),
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
        quarantine=resources.quarantine,
        checkpoints=config.output / "checkpoints" / name,
        metrics=config.output / METRICS,
        steps_before=steps_before(folder.parent, number),
        trackers=resources.trackers,
        points=stage_points(number, name, steps=steps, settings=config.evaluate),
        keep_point=partial(save_point, config.output, student=models.objective.student, save=save),
    )
    preflight(engine, config=config, stage=name, reader=reader, mixture=kept)
    before = frozen_fingerprint(engine.module)
    with recording(config, stage, models.objective.sources, partial(_later_samples, resources)):
        features = _features(engine, run, "before")
        train(engine, run)
        _account(run, kept)
        features |= _features(engine, run, "after")
    if frozen_fingerprint(engine.module) != before:
        raise GenrecalError("frozen parameters changed while the stage trained", where=name)
    # Rank 0 alone has written the metrics; another rank could read half a line.
    found = _verdict(run, features) if dist.get_rank() == 0 else None
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


def stage_samples(config: RunConfig, name: str, samples: Mixture, labels: Labels | None) -> Any:
    """What the stage `name` reads."""
    return _labelled(without_domains(samples, config.stage(name).exclude_domains or ()), labels)


def _labelled(samples: Mixture, labels: Labels | None) -> Any:
    return samples if labels is None else Relabelled(samples, labels)


def _later_samples(resources: Resources) -> list[Any]:
    """What the stages read that take the teacher from the cache."""
    config = resources.config
    return [
        stage_samples(config, name, resources.samples, resources.labels)
        for name in METHODS[config.method].stages
        if serves(config, config.plan(name))
    ]


def _reader(
    config: RunConfig,
    stage: Stage,
    samples: Sequence[Sample],
    student_folder: Path,
    shared: SharedTokens,
    ways: Sequence[Reads],
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
        reads=ways,
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
    if not run.stage.recalibrates:
        return {}
    pad = padding(run.reader)
    rows = readable(run.reader, run.quarantine, count=run.config.engine.feature_samples)
    rows = [row for row in rows if row.teachers[0].has_question]
    if not rows:
        return {}
    size = run.settings.micro_batch
    batches = [
        pad(rows[first : first + size]).to(device(), DTYPES[run.config.engine.precision])
        for first in range(0, len(rows), size)
    ]
    with recorded_by_leader(engine.module.sources):  # all ranks read the same samples here
        tensors = recalibrated_features(engine, batches)
    return {f"{when}.{name}": tensor for name, tensor in tensors.items()}


def _account(run: StageRun, samples: Mixture) -> None:
    """Say and write down where the stage's samples went, if any may be left out."""
    if not run.quarantine.skips or dist.get_rank() != 0:
        return
    per_step = dist.get_world_size() * run.settings.micro_batch * run.settings.accumulation
    read = read_by(samples.parts, seed=run.config.seed, steps=run.steps, per_step=per_step)
    found = totals(run.quarantine, samples.places, read)
    console.print(f"{run.name}: {found.sentence()}", soft_wrap=True)
    note_totals(run.config.output, run.name, found)


def _verdict(run: StageRun, features: dict[str, torch.Tensor]) -> Verdict | None:
    """From the probes of the stage's last quarter, and the features at its end."""
    if not run.stage.recalibrates:
        return None
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return verdict(
        [
            row["reading"]
            for row in rows
            if row["stage"] == run.name and row["step"] >= run.steps * 3 // 4 and "reading" in row
        ],
        _cosines(features),
    )


def _cosines(features: dict[str, torch.Tensor]) -> PairCosines | None:
    """Figure 7 at the stage's end; None: it left no features."""
    sides = [features.get(f"after.r_q_{side}") for side in ("student", "teacher")]
    tables = [side.double().numpy() for side in sides if side is not None]
    return pair_cosines(*tables) if tables else None


def _warn_unread(stage_folder: Path, answer_input: str) -> None:
    """Say so when distillation starts with a Recalibrator that does not read the student, or may not."""
    found = Verdict(**read_json(stage_folder / NAME).get("reading", {}))
    if found.reads_all:
        return
    if found.reads is None:
        advice = "Raise micro_batch or accumulation of the stage before to 2 or more, and it can"
    else:
        advice = (
            "The other answer tokens teach it nothing that way. "
            + {
                "features": "recalibrator.answer_input: aligned makes every token read it (docs/paper.md)",
                "embeddings": "Train stage 1 longer, or take answer_input: aligned (docs/paper.md)",
                "aligned": "Train stage 1 longer",
            }[answer_input]
        )
    console.print(f"warning: {found.sentence()}. {advice}", style="yellow")


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


def _probe(reader: PairReader, quarantine: Quarantine) -> Batch:
    rows = [sample.student for sample in readable(reader, quarantine, count=PROBE_SAMPLES)]
    if not rows:
        raise DataError(f"none of {len(reader):,} samples can be read", where="data")
    return collate_one(rows, padding=reader.student.tokenizer.pad_token_id)
