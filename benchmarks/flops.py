"""What a method costs: floating point operations of an optimizer step, counted on real batches.

    RESULTS/flops.json     setting/variant -> stage -> operations of an update

torch counts those of matrix products, convolutions and attention, forwards and backwards. What seconds would
say depends on what else the machine does. Generating the teacher's answers is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cells import Cell, run_config
from benchmarks.settings import Plan
from genrecal.core.files import read_json, write_json
from genrecal.data.llava import read_llava
from genrecal.data.order import step_indices
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_processor
from genrecal.train.engine import engine_config
from genrecal.train.feed import padding
from genrecal.train.pairing import comparison_settings
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage
from genrecal.train.stages import METHODS

NAME = "flops.json"
BATCHES = 8


def count_rows(plan: Plan, rows: Sequence[str], output: Path, results: Path) -> None:
    """Count what is not counted yet; the batches are the first ones of seed 0."""
    path = results / NAME
    counted: dict[str, Any] = read_json(path) if path.is_file() else {}
    for row in rows:
        setting, _, variant = row.partition("/")
        if row not in counted and plan.variants[variant].method is not None:
            config = run_config(plan, Cell(seed=0, setting=setting, variant=variant), output)
            counted[row] = {name: _of_update(config, name) for name in METHODS[config.method].stages}
            write_json(path, counted)


def total(record: dict[str, Any], counted: dict[str, float]) -> float:
    """Operations of a cell's training."""
    return sum(stage["updates"] * counted[name] for name, stage in record["stages"].items())


def _of_update(config: RunConfig, name: str) -> float:
    stage, settings = config.plan(name), config.stage(name)
    excluded = settings.exclude_domains or ()
    samples = [one for one in read_llava(Path(config.data.sources[0].path)) if one.domain not in excluded]
    reader = PairReader(
        samples,
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in config.sources if stage.reads_teacher],
        max_tokens=config.data.max_tokens,
    )
    models = build_stage(
        config,
        stage,
        student_folder=config.student,
        recalibrator_folder=None,
        engine_settings=engine_config(config.engine, config.optimizer, settings),
        comparison=comparison_settings(config, stage, reader.student, reader.teachers),
    )
    objective = models.objective.train()
    pad = padding(reader)
    with FlopCounterMode(display=False) as counter:
        for step in range(BATCHES):
            (indices,) = step_indices(
                samples=len(samples),
                seed=config.seed,
                step=step,
                rank=0,
                ranks=1,
                micro_batch=settings.micro_batch,
                accumulation=1,
            )
            batch = pad([reader[index] for index in indices])
            objective(batch, dict.fromkeys(stage.terms, 1.0)).total.backward()
    return counter.get_total_flops() / BATCHES
