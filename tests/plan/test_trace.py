"""The micro-step on shapes is the real one: its FLOPs, and the bytes that live at its peak."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from genrecal.core.config import parse_config
from genrecal.models.processors import load_model
from genrecal.plan.batches import SampleSizes, batch_of, paired_batch
from genrecal.plan.recorder import ATTENTION_FLOPS
from genrecal.plan.shapes import read_config, stage_as_shapes
from genrecal.plan.trace import _taken_gradients, trace
from genrecal.train.comparison import Comparison
from genrecal.train.reading import ReadingProbe
from genrecal.train.settings import RunConfig
from genrecal.train.setup import arrange_stage
from tests.families import NAMES
from tests.tiny import TinyPair

SIZES = SampleSizes(question_tokens=40, answer_tokens=30, tiles=3, pixels=48 * 48)
# Of small tensors the real run has more: indices and masks of some kilobytes, and alignment.
CLOSE = 0.05


def run_config(student: Path, teacher: Path, **settings: Any) -> RunConfig:
    content = {
        "student": str(student),
        "teacher": str(teacher),
        "output": "unused",
        "data": {"sources": [{"path": "unused.json"}]},
        "engine": {
            "precision": "fp32",
            "zero_stage": settings.pop("zero_stage", 0),
            "gradient_checkpointing": settings.pop("recompute", True),
        },
        "lora": {"rank": 4, "alpha": 4, "dropout": 0.0},
        **settings,
    }
    return parse_config(content, RunConfig, where="test")


def both(config: RunConfig, name: str, *, probed: bool = False) -> tuple[tuple[float, float], ...]:
    """FLOPs and peak bytes, on shapes and for real."""
    stage = config.plan(name)
    folders = [config.student, *(source.path for source in config.sources if stage.reads_teacher)]
    models = [read_config(folder) for folder in folders]
    student, *teachers = (batch_of(model, SIZES, samples=2) for model in models)
    batch = paired_batch(student, teachers, domain="knowledge")
    shapes = stage_as_shapes(config, name, models[0], models[1:])
    planned = trace(shapes, stage, batch, zero_stage=config.engine.zero_stage, probed=probed)
    real = [load_model(folder, dtype=torch.float32) for folder in folders]
    comparison = Comparison(image_token_id=models[0].image_token_id)
    objective = arrange_stage(
        config, stage, student=real[0], teachers=real[1:], recalibrator_folder=None, comparison=comparison
    ).objective.train()
    hooks = list(_taken_gradients(objective))
    scales = dict.fromkeys([*stage.terms, *(["sft"] if probed else [])], 1.0)

    def step() -> None:
        objective(batch, scales, ReadingProbe() if probed else None).total.backward()

    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    assert hooks
    measured = max(itertools.accumulate(size for _, size in sizes))
    return (sum(planned.flops.values()), planned.peak_bytes), (counter.get_total_flops(), measured)


@pytest.mark.parametrize("probed", [False, True], ids=["plain", "probed"])
@pytest.mark.parametrize("stage", ["recalibrate", "distill", "finetune"])
def test_a_stage_takes_what_its_trace_says(tiny_pair: TinyPair, stage: str, probed: bool) -> None:
    config = run_config(tiny_pair.student, tiny_pair.teacher)
    planned, measured = both(config, stage, probed=probed)
    assert planned[0] == measured[0]
    assert planned[1] == pytest.approx(measured[1], rel=CLOSE)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_activations(tiny_pair: TinyPair, recompute: bool) -> None:
    config = run_config(tiny_pair.student, tiny_pair.teacher, recompute=recompute)
    planned, measured = both(config, "finetune")
    assert planned[0] == measured[0]
    assert planned[1] == pytest.approx(measured[1], rel=CLOSE)


def test_the_linear_layer_of_zero_3(tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps inputs of frozen layers, which torch's own lets go; behind dropout, LoRA's are others."""
    lora = {"rank": 4, "alpha": 4, "dropout": 0.1}
    pair = (tiny_pair.student, tiny_pair.teacher)
    plain, _ = both(run_config(*pair, recompute=False, lora=lora), "distill")
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    planned, measured = both(run_config(*pair, recompute=False, lora=lora, zero_stage=3), "distill")
    assert planned[1] > plain[1]
    assert planned[1] == pytest.approx(measured[1], rel=CLOSE)


# Two manners of images at once; the others have minutes.
QUICK = ("internvl", "qwen3_vl")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in NAMES]
)
def test_every_family(family_folders: dict[str, Path], tiny_pair: TinyPair, name: str) -> None:
    config = run_config(tiny_pair.student, family_folders[name])
    planned, measured = both(config, "distill")
    assert planned[0] == measured[0]
    assert planned[1] == pytest.approx(measured[1], rel=CLOSE)


@pytest.mark.parametrize(
    "method",
    ["gold", *(pytest.param(name, marks=pytest.mark.full) for name in ("minillm", "uld", "llava-kd"))],
)
def test_other_methods(tiny_pair: TinyPair, method: str) -> None:
    from genrecal.train.stages import METHODS

    config = run_config(tiny_pair.teacher, tiny_pair.teacher, method=method)
    models = [read_config(tiny_pair.teacher)] * 2
    student = batch_of(models[0], SIZES, samples=2)
    for name in METHODS[method].stages:
        reads = config.plan(name).reads_teacher
        batch = paired_batch(student, [student] if reads else [], domain="knowledge")
        objective = stage_as_shapes(config, name, models[0], models[1:])
        found = trace(objective, config.plan(name), batch, zero_stage=0)
        assert found.flops["backward"] > 0
        assert ("teacher body" in found.flops) == reads
