"""What does not fit gets the nearest setting that does."""

from __future__ import annotations

from typing import Any

import pytest

from genrecal.plan.fit import fit_of
from genrecal.plan.memory import REDUCE_BUCKET, gathered_bytes, memory_of
from genrecal.plan.settings import MachineConfig, WorkloadConfig
from genrecal.plan.shapes import read_config
from genrecal.plan.stage import StageSketch
from genrecal.plan.workload import workload_of
from tests.plan.test_depth import MODELS
from tests.plan.test_trace import run_config

RANKS = 2


@pytest.fixture(scope="module")
def sketch() -> StageSketch:
    config = run_config(
        MODELS / "mid-student",
        MODELS / "mid-teacher",
        recompute=False,
        zero_stage=3,
        stages={"finetune": {"micro_batch": 8, "accumulation": 4}},
    )
    models: list[Any] = [read_config(MODELS / f"mid-{side}") for side in ("student", "teacher")]
    given = WorkloadConfig(samples=640, question_tokens=40, answer_tokens=60, tiles=(2,))
    return StageSketch(config, "finetune", models, workload_of(config, given, models))


def machine(bytes_: float) -> MachineConfig:
    return MachineConfig(memory_gib=bytes_ / 2**30, spare=0.0)


def peak(sketch: StageSketch, *, micro_batch: int = 8, ranks: int = RANKS, **engine: Any) -> int:
    settings = sketch.config.engine.model_copy(update=engine)
    return sketch.memory(settings, micro_batch=micro_batch, ranks=ranks).peak


def test_it_fits(sketch: StageSketch) -> None:
    fit = fit_of(sketch, machine(peak(sketch) + 1), ranks=RANKS)
    assert fit.fits
    assert fit.peak == peak(sketch)


def test_a_smaller_micro_batch_comes_first(sketch: StageSketch) -> None:
    fit = fit_of(sketch, machine(peak(sketch) - 1), ranks=RANKS)
    assert fit.change == {"micro_batch": 4, "accumulation": 8}
    assert fit.peak_then == peak(sketch, micro_batch=4) < fit.peak


def test_then_activations_are_recomputed(sketch: StageSketch) -> None:
    assert peak(sketch, gradient_checkpointing=True) < peak(sketch)
    smallest = peak(sketch, micro_batch=1)
    fit = fit_of(sketch, machine(smallest - 1), ranks=RANKS)
    assert fit.change is not None
    assert fit.change.get("gradient_checkpointing") or fit.change.get("ranks")
    assert fit.peak_then < smallest


def test_nothing_helps_where_the_bucket_alone_is_too_large(sketch: StageSketch) -> None:
    fit = fit_of(sketch, machine(REDUCE_BUCKET), ranks=RANKS)
    assert fit.change == {}
    assert "helps" in fit.sentence()


def test_zero_splits(sketch: StageSketch) -> None:
    one, many = (peak(sketch, ranks=ranks, micro_batch=1) for ranks in (2, 16))
    assert many < one
    engine = sketch.config.engine
    assert gathered_bytes(sketch.parameters, engine, ranks=1) == 0
    whole = gathered_bytes(sketch.parameters, engine, ranks=2)
    assert whole == sketch.parameters.total * 4
    trace = sketch._trace("longest", engine, 1, probed=False)
    four = sketch.parameters.trained_total * 4
    for stage, master, moments in ((0, 0.0, 2.0), (2, 0.5, 1.0), (3, 0.5, 1.0)):
        split = engine.model_copy(update={"zero_stage": stage})
        held = memory_of(sketch.parameters, trace, split, ranks=2).held
        assert held.get("fp32 master weights", 0) == pytest.approx(four * master)
        assert held["AdamW moments"] == pytest.approx(four * moments)


def test_where_weights_lie(sketch: StageSketch) -> None:
    engine, parameters = sketch.config.engine, sketch.parameters
    trace = sketch._trace("longest", engine, 1, probed=False)
    plain = memory_of(parameters, trace, engine, ranks=16).held
    host = engine.model_copy(update={"offload_params": "cpu"})
    assert "trained weights" not in memory_of(parameters, trace, host, ranks=16).held
    node = memory_of(parameters, trace, engine.model_copy(update={"hpz_partition": 8}), ranks=16).held
    assert node["weights of the node"] == parameters.total * 4 // 8
    assert node["trained weights"] == plain["trained weights"]
