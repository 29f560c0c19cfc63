"""Before the first step: is every model given what the samples say, and does the teacher see its images?

    some samples of every source and domain         preflight_samples.py
      -> each model's tokens, weights, forward passes          preflight_models.py
      -> errors, which stop the run, and warnings              preflight_verdict.py
      -> RUN/preflight.json, and a block of lines

Every rank does all of it with the same samples, one by one: collectives under ZeRO-3 stay aligned, a sample
that a model cannot read fails on all ranks at once, and the figures do not depend on the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from genrecal.core.console import console
from genrecal.core.errors import TrainError
from genrecal.core.files import read_json, write_json
from genrecal.data.belonging import Finding
from genrecal.data.mixture import Mixture
from genrecal.data.pair import PairReader
from genrecal.train.engine import DTYPES
from genrecal.train.objective import Objective
from genrecal.train.preflight_models import Examined, examine
from genrecal.train.preflight_samples import ReadSample, Seat, read_samples, require_same, seats_of
from genrecal.train.preflight_verdict import ModelFigures
from genrecal.train.settings import RunConfig

RECORD = "preflight.json"


def preflight(engine: Any, *, config: RunConfig, stage: str, reader: PairReader, mixture: Mixture) -> None:
    """Check the models of a stage unless the run's record has them already; every rank calls it.

    Args:
        engine: around the stage's Objective.
        config: the run.
        stage: its name, for the record.
        reader: of the stage: its samples have the labels that are learned.
        mixture: the same samples, with their sources and domains.

    Raises:
        TrainError: an error was found, and `preflight.mode` is stop; or a model cannot read a sample.
        DataError: no sample can be read.
    """
    objective: Objective = engine.module
    was_training = objective.training
    objective.eval()
    check(seats_of(config, objective, reader), config=config, name=stage, reader=reader, mixture=mixture)
    objective.train(was_training)


def check(
    seats: Sequence[Seat], *, config: RunConfig, name: str, reader: PairReader, mixture: Mixture
) -> None:
    """Check models, which are in evaluation mode; arguments and errors as of `preflight`."""
    settings = config.preflight
    path = config.output / RECORD
    if settings.mode == "off":
        return
    before = _records(path)
    if _is_recorded(before, seats):
        return
    started = time.monotonic()
    read = read_samples(seats, reader, mixture, settings.samples)
    require_same(read.samples)
    dtype = DTYPES[config.engine.precision]
    models = examine(seats, read.samples, dtype, live=_live_nats(before))
    # What rank 0 found counts: another rank's rounding must not make it leave alone.
    holder = [(models, read.findings)]
    dist.broadcast_object_list(holder)
    models, of_data = holder[0]
    errors = [(who, finding) for who, finding in _said(models, of_data) if finding.level == "error"]
    failed = any(model.failed for model in models)
    stops = failed or (bool(errors) and settings.mode == "stop")
    if dist.get_rank() == 0:
        seconds = time.monotonic() - started
        record = _record(models, of_data)
        record |= {"mode": settings.mode, "stopped": stops, "seconds": seconds}
        write_json(path, before | {name: _as_json(record)})
        _print(name, models, of_data, read.samples, seconds)
    dist.barrier()
    if stops:
        (who, first), *more = errors
        others = f" (and {len(more)} more)" if more else ""
        goes_on = "" if failed else "preflight.mode: warn would train nevertheless"
        raise TrainError(
            f"before the first step, {who}: {first.what}{others}",
            where=path,
            fix=" ".join(filter(None, (first.fix, goes_on))),
        )


def _records(path: Path) -> dict[str, Any]:
    """The record of each stage that was checked in this run, as rank 0 finds it, on every rank."""
    found = [read_json(path) if dist.get_rank() == 0 and path.is_file() else {}]
    dist.broadcast_object_list(found)
    return found[0]


def _is_recorded(records: dict[str, Any], seats: Sequence[Seat]) -> bool:
    """Whether a stage with the same models was checked and went on; a cached teacher is not the live one."""
    wanted = {(seat.name, seat.stored is not None) for seat in seats}
    return any(
        not record["stopped"]
        and wanted <= {(name, model["stored"]) for name, model in record["models"].items()}
        for record in records.values()
    )


def _live_nats(records: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What live models made of each sample in the stages before."""
    return {
        name: model["nats"]
        for record in records.values()
        for name, model in record["models"].items()
        if not model["stored"]
    }


def _record(models: Sequence[Examined], of_data: Sequence[Finding]) -> dict[str, Any]:
    return {
        "models": {
            model.name: {
                "folder": str(model.folder),
                "stored": model.stored,
                "figures": None if model.figures is None else asdict(model.figures),
                "findings": [asdict(finding) for finding in model.findings],
                "nats": model.nats,
                "live_apart": model.live_apart,
            }
            for model in models
        },
        "data": [asdict(finding) for finding in of_data],
    }


def _as_json(value: Any) -> Any:
    """`value` with its NaN and infinities as text: JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _said(models: Sequence[Examined], of_data: Sequence[Finding]) -> Iterator[tuple[str, Finding]]:
    """Every finding, with the one that it is about."""
    for model in models:
        for finding in model.findings:
            yield f"{model.name} {model.folder}", finding
    for finding in of_data:
        yield "data", finding


def _print(
    stage: str,
    models: Sequence[Examined],
    of_data: Sequence[Finding],
    samples: Sequence[ReadSample],
    seconds: float,
) -> None:
    with_images = sum(one.exchanged is not None for one in samples)
    console.print(
        f"{stage}: {len(samples)} samples before the first step, {with_images} of them with images,"
        f" {seconds:.1f} s"
    )
    for model in models:
        if model.figures is not None:
            line = f"  {model.name}: {_figures_line(model.figures)}{_images_line(model)}"
            console.print(line, markup=False, soft_wrap=True)
    for who, finding in _said(models, of_data):
        style = "red" if finding.level == "error" else "yellow"
        line = f"  {finding.level}: {who}: {finding.what}" + (f". {finding.fix}" if finding.fix else "")
        console.print(line, style=style, markup=False, soft_wrap=True)


def _figures_line(figures: ModelFigures) -> str:
    return (
        f"CE {figures.nats:.3f} nats per answer token (its own choices {figures.greedy_nats:.3f}, a uniform"
        f" guess {figures.uniform_nats:.2f}), {figures.agreement:.0%} of the tokens are its own choice"
    )


def _images_line(model: Examined) -> str:
    assert model.figures is not None
    figures, images = model.figures, model.figures.images
    if model.stored:
        found = "nothing to compare with" if model.live_apart is None else f"{model.live_apart:.4f} apart"
        return f"; from the cache, against the live teacher: {found}"
    if images is None:
        return "; no sample has images, so whether it sees them was not checked"
    return (
        f"; with images {figures.image_sample_nats:.3f}, with another sample's {figures.exchanged_nats:.3f},"
        f" worse in {images.above} of {images.samples} (p = {images.p_value:.2g})"
    )
