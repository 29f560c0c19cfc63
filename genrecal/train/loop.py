"""The training loop: read this first.

    for each optimizer step
        the step's micro-batches of this rank (a pure function of seed, step and rank)
        counts of the whole step (answer tokens, positions), over all ranks and micro-batches
        for each micro-batch: loss terms as sums, divided by those counts in their total -> backward
        AdamW through DeepSpeed, linear learning rate; a line in metrics.jsonl

Stages differ only in what they are given: the models under the engine, the loss terms and the data.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from genrecal.core.console import console, progress
from genrecal.core.errors import Requeue
from genrecal.core.files import sync_file, write_text
from genrecal.data.batch import PairedBatch
from genrecal.data.pair import PairReader
from genrecal.data.quarantine import Quarantine
from genrecal.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from genrecal.train.engine import DTYPES, device, sum_over_ranks
from genrecal.train.feed import Feed, micro_batches, news, settle
from genrecal.train.guard import Guard, poisoned, take_step
from genrecal.train.objective import Objective, term_name, term_of
from genrecal.train.points import Point
from genrecal.train.reading import ReadingProbe, reading_metrics
from genrecal.train.settings import RunConfig
from genrecal.train.stages import TERMS, Stage, StageConfig
from genrecal.train.stopping import asked, stepping
from genrecal.train.track import Trackers
from genrecal.train.writing import writing

# Between two lines of progress in a log.
SAY_EVERY_S = 30
# A term that nothing trains on, and what its sum is divided by.
FOLLOWED = {"teacher_ar": "aligned_tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """All that the loop needs to know about the stage it runs."""

    name: str
    stage: Stage
    settings: StageConfig
    config: RunConfig
    steps: int
    reader: PairReader
    quarantine: Quarantine
    checkpoints: Path
    metrics: Path
    steps_before: int  # of the stages before
    trackers: Trackers
    points: dict[int, Point]  # by steps done: where the student is kept to be scored
    keep_point: Callable[[Point], None]


def train(engine: Any, run: StageRun) -> None:
    """Train from the newest checkpoint, or from the start, to the stage's last step."""
    checkpoint = newest_checkpoint(run.checkpoints)
    first = load_checkpoint(engine, checkpoint) if checkpoint else 0
    leader = dist.get_rank() == 0
    if leader:
        with writing(run.metrics):
            keep_metrics(run.metrics, stage=run.name, steps=first)
        if first:
            console.print(f"{run.name}: resuming after step {first} of {run.steps}")
    engine.train()
    batches = micro_batches(_feed(run), first=first)
    guard = Guard(run.config.engine, skipped=_skipped(run))
    started = said = saved = time.monotonic()
    with stepping(), progress(disable=not leader) as bar:
        task = bar.add_task(run.name, total=run.steps, completed=first, note="")
        for step in range(first, run.steps):
            record = _optimizer_step(engine, run, step, batches, guard)
            if leader:
                _append(run.metrics, record)
                run.trackers.log(record, run.steps_before + step)
                bar.update(task, advance=1, note=f"loss {record['loss']:.3f}")
                said = _say(run, record, started, first, said)
            if point := run.points.get(step + 1):
                run.keep_point(point)
            leave, save = _agree(run, step + 1, saved)
            if leave or save:
                _save(engine, run, step + 1)
                saved = time.monotonic()
            if leave:
                raise _requeue(run, step + 1)


def _agree(run: StageRun, done: int, saved: float) -> tuple[bool, bool]:
    """Whether to leave, as some rank was asked to, and whether a checkpoint is due; the same on every rank.

    The end of the stage needs no checkpoint: its folder follows.
    """
    settings = run.config.engine
    late = settings.save_minutes is not None and time.monotonic() - saved >= 60 * settings.save_minutes
    late = late and dist.get_rank() == 0  # whose clock counts
    votes = sum_over_ranks({"leave": float(asked() is not None), "late": float(late)})
    due = done % settings.save_every == 0 or votes["late"] > 0
    return votes["leave"] > 0, due and done < run.steps


def _save(engine: Any, run: StageRun, done: int) -> None:
    """A checkpoint, behind the lines of its steps: a resumed run must find them."""
    if dist.get_rank() == 0:
        with writing(run.metrics):
            sync_file(run.metrics)
    save_checkpoint(engine, run.checkpoints, step=done, keep=run.config.engine.keep_checkpoints)


def _requeue(run: StageRun, done: int) -> Requeue:
    """What ends this rank after a signal; rank 0 has said so."""
    reason = Requeue(
        f"{run.name}: ended by {asked() or 'a signal'} after step {done} of {run.steps}, its checkpoint is"
        " written; the same command goes on"
    )
    reason.reported = True
    if dist.get_rank() == 0:
        console.print(str(reason), soft_wrap=True)
    return reason


def _skipped(run: StageRun) -> int:
    """Steps of the stage that were skipped before a resume, as rank 0's metrics have them."""
    rows = _rows(run.metrics) if dist.get_rank() == 0 else []
    count = sum(row["stage"] == run.name and "skipped" in row for row in rows)
    return int(sum_over_ranks({"skipped": float(count)})["skipped"])


def _say(run: StageRun, record: dict[str, Any], started: float, first: int, said: float) -> float:
    """A line with the ETA every half a minute where no terminal shows the bar; returns when it spoke last."""
    now, done = time.monotonic(), record["step"] + 1
    if console.is_terminal or (now - said < SAY_EVERY_S and done < run.steps):
        return said
    left = (now - started) / (done - first) * (run.steps - done)
    console.print(f"{run.name}: step {done} of {run.steps}, loss {record['loss']:.4f}, ETA {left:.0f} s")
    return now


def _optimizer_step(
    engine: Any, run: StageRun, step: int, batches: Iterator[PairedBatch], guard: Guard
) -> dict[str, Any]:
    started = time.perf_counter()
    config, ranks = run.config, dist.get_world_size()
    step_batches = [next(batches) for _ in range(run.settings.accumulation)]
    # Dropout depends on the step alone, so a resumed run draws what the uninterrupted one drew. After the
    # reading: a DataLoader draws a number too, when it starts.
    torch.manual_seed(hash((config.seed, step, dist.get_rank())) % 2**63)
    counts = _counts(engine.module, step_batches, run.quarantine)
    settle(run.quarantine, step_batches, counts.pop("quarantined"), stage=run.name, step=step)
    samples = counts.pop("samples")
    rate = learning_rate(run.settings, step, run.steps)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    probed = step % config.engine.probe_every == 0 or step + 1 == run.steps
    probe = ReadingProbe() if probed else None
    weights = _weights(run)
    # A probed step also sends the SFT loss back to z, in stages where it reaches no trained weight.
    trained = weights | ({"sft": weights.get("sft", 1.0)} if probe else {})
    # DeepSpeed divides by ranks and accumulation; the terms are divided by the step's counts already.
    scales = {
        name: weight / _count(name, counts) * ranks * run.settings.accumulation
        for name, weight in trained.items()
    }
    sums: dict[str, float] = {}
    bad = []
    for place, batch in enumerate(step_batches):
        total, terms = engine(batch.to(device(), DTYPES[config.engine.precision]), scales, probe)
        if not bool(total.isfinite()):
            bad.append(place)
        engine.backward(poisoned(total))
        applied = take_step(engine)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    skipped = None if applied else guard.refuse(step, step_batches, bad, where=run.name)
    losses = {name: value / _count(name, counts) for name, value in sum_over_ranks(sums).items()}
    total_loss = sum(weights[name] * losses[name] for name in sorted(weights))
    norm = engine.get_global_grad_norm()  # None with ZeRO-0 in fp32, which does not keep it
    record: dict[str, Any] = {
        "stage": run.name,
        "step": step,
        "steps": run.steps,
        "lr": rate,
        "loss": _finite(total_loss),
        "terms": {name: _finite(loss) for name, loss in losses.items()},
        "counts": counts,
        "samples": int(samples),
        "grad_norm": None if norm is None else _finite(float(norm)),
        "seconds": time.perf_counter() - started,
    }
    if skipped is not None:
        record["skipped"] = skipped
    elif probe:
        sums = sum_over_ranks(probe.sums)
        record["reading"] = reading_metrics(sums, ranks=ranks, distils=run.stage.recalibrates)
    return record


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def learning_rate(settings: StageConfig, step: int, steps: int) -> float:
    """Linear from lr_start to lr_end at the last step (paper, section 4.1c), after an optional warm-up."""
    if step < settings.warmup_steps:
        return settings.lr_start * (step + 1) / (settings.warmup_steps + 1)
    done = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
    return settings.lr_start + (settings.lr_end - settings.lr_start) * done


def _feed(run: StageRun) -> Feed:
    return Feed(
        reader=run.reader,
        quarantine=run.quarantine,
        data=run.config.data,
        seed=run.config.seed,
        steps=run.steps,
        micro_batch=run.settings.micro_batch,
        accumulation=run.settings.accumulation,
    )


def _weights(run: StageRun) -> dict[str, float]:
    """The weight of every term that the stage trains on, by its name in `Objective.forward`."""
    weights = {}
    for place, source in enumerate(run.config.sources or (None,)):
        for term in run.stage.terms:
            if TERMS[term].reads_teacher:
                share = source.weight if source is not None else 1.0
                weights[term_name(term, place)] = share * run.stage.weights.get(term, 1.0)
            else:
                weights[term] = run.stage.weights.get(term, 1.0)
    return weights


def _count(term: str, counts: dict[str, float]) -> float:
    """What a term's sum is divided by; 1 where the step holds nothing that it is taken at."""
    plain, place = term_of(term)
    per = FOLLOWED.get(plain) or TERMS[plain].per
    return counts[term_name(per, place) if per == "aligned_tokens" else per] or 1.0


def _counts(objective: Objective, batches: list[PairedBatch], quarantine: Quarantine) -> dict[str, float]:
    """`Objective.counts` of the optimizer step, its samples and those newly left out, over all ranks."""
    total = {"quarantined": float(news(quarantine, batches)), "samples": 0.0}
    for batch in batches:
        total["samples"] += len(batch.ids)
        for name, value in objective.counts(batch).items():
            total[name] = total.get(name, 0.0) + value
    return sum_over_ranks(total)


def keep_metrics(path: Path, *, stage: str, steps: int) -> None:
    """Drop the lines of `stage` from step `steps` on: a resumed run writes them again."""
    if path.is_file():
        kept = [row for row in _rows(path) if row["stage"] != stage or row["step"] < steps]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _complete(line)]


def _complete(line: str) -> bool:
    """Whether a line was written whole; a kill can cut the last one off."""
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _append(path: Path, record: dict[str, Any]) -> None:
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
