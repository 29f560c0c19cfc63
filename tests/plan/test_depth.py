"""Two shallow models say what the deep one takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import genrecal.plan.stage as stage_module
from genrecal.plan.settings import WorkloadConfig
from genrecal.plan.shapes import read_config
from genrecal.plan.stage import StageSketch
from genrecal.plan.workload import workload_of
from tests.plan.test_trace import run_config

MODELS = Path(__file__).parents[2] / "benchmarks" / "results" / "plan" / "models"


@pytest.mark.parametrize(
    "recompute", [True, pytest.param(False, marks=pytest.mark.full)], ids=["recomputed", "kept"]
)
@pytest.mark.parametrize("stage", ["recalibrate", "distill", "finetune"])
def test_deep_from_shallow(stage: str, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(MODELS / "mid-student", MODELS / "mid-teacher", recompute=recompute)
    models: list[Any] = [read_config(MODELS / f"mid-{side}") for side in ("student", "teacher")]
    workload = workload_of(
        config, WorkloadConfig(samples=8, question_tokens=40, answer_tokens=30, tiles=(2,)), models
    )
    shallow = StageSketch(config, stage, models, workload)
    monkeypatch.setattr(stage_module, "may_be_shallow", lambda _: False)
    whole = StageSketch(config, stage, models, workload)
    assert len(shallow._layers) == 2
    assert len(whole._layers) == 1
    assert shallow.parameters == whole.parameters
    memory = [one.memory(config.engine, micro_batch=2, ranks=1) for one in (shallow, whole)]
    assert memory[0].moments == memory[1].moments
    assert shallow.flops_of_sample() == whole.flops_of_sample()
