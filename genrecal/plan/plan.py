"""`genrecal plan`: all stages of a run on paper, before a GPU is taken. Read this first.

RunConfig, PlanConfig -> models as shapes (shapes.py) -> every stage (stage.py) -> does it fit (fit.py)?
                      -> FLOPs for several sizes of images -> days, GPU-hours, utilisation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrecal.core.errors import ModelError
from genrecal.plan.fit import Fit, fit_of
from genrecal.plan.settings import PlanConfig
from genrecal.plan.shapes import read_config
from genrecal.plan.stage import StagePlan, StageSketch
from genrecal.plan.workload import workload_of
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS

DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """The run with images of one number of tiles."""

    tiles: int
    student_tokens: float
    flops: dict[str, float]  # of each stage
    days: dict[str, float]  # at the plan's utilisation
    implied: dict[str, tuple[float, float]]  # utilisation for the longest and the shortest of the plan's days


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All figures of a run."""

    config: PlanConfig
    ranks: int
    lengths: str  # where they come from
    stages: list[StagePlan]
    fits: list[Fit]
    images: list[ImageRow]

    @property
    def peak_flops(self) -> float:
        """Of all GPUs in a second."""
        return self.ranks * self.config.machine.figures.tflops * 1e12

    def days(self, flops: float) -> float:
        """At the plan's utilisation."""
        return flops / (self.peak_flops * self.config.time.utilisation) / DAY_S

    def gpu_hours(self, flops: float) -> float:
        return self.days(flops) * 24 * self.ranks


def make_plan(config: RunConfig, plan: PlanConfig) -> Plan:
    """Plan every stage of the config's method.

    Raises:
        ConfigError: nothing says how many samples there are.
        ModelError: a model's config cannot be found or read.
        DataError: data on disk cannot be used.
    """
    folders = [config.student, *(source.path for source in config.sources)]
    models = [read_config(config_folder(folder, plan.models)) for folder in folders]
    ranks = plan.machine.ranks or _ranks(config)
    workload = workload_of(config, plan.workload, models)
    stages: list[StagePlan] = []
    fits: list[Fit] = []
    for name in METHODS[config.method].stages:
        sketch = StageSketch(config, name, models, workload)
        stages.append(sketch.plan(plan.machine, ranks=ranks))
        fits.append(fit_of(sketch, plan.machine, ranks=ranks))
    made = Plan(config=plan, ranks=ranks, lengths=workload.source, stages=stages, fits=fits, images=[])
    made.images.extend(_image_rows(config, made, models))
    return made


def _ranks(config: RunConfig) -> int:
    """GPUs that the config starts on: those of its nodes, where it names them."""
    near = config.launch.gpus_per_node
    return config.launch.nodes * near if near else config.engine.ranks


def config_folder(folder: Path, models: Path | None) -> Path:
    """The model's own folder, or the one of its name below `models`.

    Raises:
        ModelError: there is no config.json in either.
    """
    places = [folder, *([models / folder.name] if models else [])]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ModelError(
        "no such model folder", where=" or ".join(map(str, places)), fix="--models names a folder of configs"
    )


def _image_rows(config: RunConfig, plan: Plan, models: Sequence[Any]) -> list[ImageRow]:
    """A row for each number of tiles; FLOPs are quadratic in it, so three of them give the others."""
    tiles = sorted(set(plan.config.workload.tiles))
    if len(tiles) < 2:
        return []
    traced = tiles if len(tiles) < 4 else [tiles[0], tiles[len(tiles) // 2], tiles[-1]]
    flops: dict[str, list[float]] = {stage.name: [] for stage in plan.stages}
    tokens: list[float] = []
    for number in traced:
        workload = workload_of(config, plan.config.workload, models, tiles=number)
        for stage in plan.stages:
            # One sample at a time: what is computed for a sample does not depend on its neighbours.
            settings = config.stage(stage.name).model_copy(update={"micro_batch": 1})
            single = config.model_copy(update={"stages": config.stages | {stage.name: settings}})
            sketch = StageSketch(single, stage.name, models, workload)
            flops[stage.name].append(sum(sketch.flops_of_sample().values()))
        tokens.append(sketch.batches(1).tokens()[0])
    rows = []
    for number in tiles:
        total = {
            stage.name: _at(number, traced, flops[stage.name]) * stage.steps * stage.global_batch
            for stage in plan.stages
        }
        rows.append(
            ImageRow(
                tiles=number,
                student_tokens=_at(number, traced, tokens),
                flops=total,
                days={name: plan.days(one) for name, one in total.items()},
                implied={
                    names: implied_utilisation(plan, sum(total[name] for name in names.split("+")), days)
                    for names, days in plan.config.time.days.items()
                    if set(names.split("+")) <= total.keys()
                },
            )
        )
    return rows


def implied_utilisation(plan: Plan, flops: float, days: tuple[float, float]) -> tuple[float, float]:
    """The share of the peak that computing `flops` in `days` takes, for the longer and the shorter time."""
    return flops / (plan.peak_flops * days[1] * DAY_S), flops / (plan.peak_flops * days[0] * DAY_S)


def _at(number: int, places: Sequence[int], values: Sequence[float]) -> float:
    """The parabola (or line) through `values` at `places`."""
    return float(np.polyval(np.polyfit(places, values, len(places) - 1), number))
