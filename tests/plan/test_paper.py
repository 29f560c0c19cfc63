"""The paper's own setting: steps, sizes, and what its days say of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrecal.core.config import load_config
from genrecal.plan.parameters import count_parameters
from genrecal.plan.plan import Plan, make_plan
from genrecal.plan.settings import PlanConfig
from genrecal.plan.shapes import read_config, stage_as_shapes
from genrecal.train.settings import RunConfig

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper"
# Billions of parameters, as the authors' model cards have them.
PUBLISHED = {
    "InternVL2_5-1B": 0.938,
    "InternVL2_5-2B": 2.21,
    "InternVL2_5-4B": 3.71,
    "InternVL2_5-8B": 8.08,
    "InternVL2_5-78B": 78.4,
    "Qwen2-VL-2B-Instruct": 2.21,
    "Qwen2-VL-7B-Instruct": 8.29,
    "Qwen2-VL-72B-Instruct": 73.4,
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    config = load_config(PAPER / "internvl2_5_8b_from_internvl2_5_78b.yaml", RunConfig)
    settings = load_config(ROOT / "configs" / "plan" / "paper.yaml", PlanConfig)
    return make_plan(config, settings.model_copy(update={"models": PAPER / "models"}))


def test_optimizer_steps(plan: Plan) -> None:
    for stage, steps in zip(plan.stages, (549, 1099, 366), strict=True):
        assert abs(stage.steps - steps) <= 1


def test_the_estimate_by_hand(plan: Plan) -> None:
    """FLOPs of the stages at 5 tiles, estimated as 2 a parameter and token, without attention's square."""
    for stage, flops in zip(plan.stages, (3.02e21, 3.50e21, 6.2e20), strict=True):
        assert stage.flops == pytest.approx(flops, rel=0.03)


def test_the_papers_days(plan: Plan) -> None:
    rows = {row.tiles: row for row in plan.images}
    assert sorted(rows) == [1, 3, 5, 7, 13]
    low, high = rows[5].implied["recalibrate+distill"]
    assert (low, high) == (pytest.approx(0.135, abs=0.005), pytest.approx(0.189, abs=0.005))
    low, high = rows[5].implied["finetune"]
    assert (low, high) == (pytest.approx(0.015, abs=0.001), pytest.approx(0.0225, abs=0.001))
    flops = [rows[tiles].flops["distill"] for tiles in sorted(rows)]
    assert flops == sorted(flops)


def test_it_fits_the_papers_gpus(plan: Plan) -> None:
    assert all(fit.fits for fit in plan.fits)
    recalibrate, distill, finetune = (stage.parameters for stage in plan.stages)
    assert recalibrate.trained.keys() == {"Recalibrator"}
    assert distill.trained.keys() == {"Recalibrator", "student LoRA"}
    assert finetune.frozen.keys() == {"student vision encoder"}
    # 9M samples of 200 answer tokens and the last question position, 8,192 numbers of two bytes
    assert plan.stages[1].disk.cache["answers, bf16"] == 9_000_000 * 201 * 8192 * 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name: str) -> None:
    from tests.plan.test_trace import run_config

    folder = PAPER / "models" / name
    config = run_config(folder, folder, method="finetune")
    counted = count_parameters(stage_as_shapes(config, "finetune", read_config(folder), ()))
    assert counted.total / 1e9 == pytest.approx(PUBLISHED[name], rel=0.002)
