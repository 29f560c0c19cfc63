"""What a case takes: bytes from torch's own reports, processor seconds of its steps."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from benchmarks.plan.calibration import Calibration
from benchmarks.plan.cases import CASES, PAIRS, STEPS, run_config
from benchmarks.plan.driver import Driver
from genrecal.data.batch import PairedBatch
from genrecal.train.engine import join_ranks
from genrecal.train.settings import RunConfig


def measure_memory(driver: Driver) -> dict[str, Any]:
    """Bytes that tensors take between two steps, and at most within one, which is probed.

    Of some steps the least: now and then the profiler loses the report that something was freed.
    """
    gc.collect()
    resting = _living_bytes()
    return {"resting_bytes": resting, "peak_bytes": resting + min(_most_on_top(driver) for _ in range(3))}


def _most_on_top(driver: Driver) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        driver.step(probed=True)
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    )
    return max(itertools.accumulate(size for _, size in events))


def _living_bytes() -> int:
    """Of all storages that Python's collector finds a tensor of."""
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and not found.is_meta:
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure_time(driver: Driver, pair: str) -> dict[str, Any]:
    """Processor seconds of each optimizer step, and the machine's speed before each micro-step.

    The speed is that of the sizes which the stage computes with: of its teacher, where it has one.
    """
    batch = driver.batch
    side, read = ("teacher", batch.teachers[0]) if batch.teachers else ("student", batch.student)
    calibration = Calibration(
        driver.config.engine.precision, tokens=read.input_ids_BS.numel(), width=PAIRS[pair][side].hidden
    )
    seconds = [driver.step(probed=False, before=calibration.measure) for _ in range(STEPS)]
    return {"seconds": seconds, "speed": calibration.readings}


def sizes_of(batch: PairedBatch, config: RunConfig) -> list[dict[str, int]]:
    """What a prediction is told of the samples, by model: the student, then the teacher."""
    sizes = []
    for side, one in zip((config.student, config.teacher), (batch.student, *batch.teachers), strict=False):
        model = AutoConfig.from_pretrained(side)
        marks = [
            model.image_token_id,
            *(getattr(model, f"vision_{end}_token_id", -1) for end in ("start", "end")),
        ]
        question = one.input_ids_BS[0, : int(one.question_lengths_B[0])]
        text = ~torch.isin(question, torch.tensor(marks))
        grid = one.vision.get("image_grid_thw")
        samples = len(one.input_ids_BS)
        sizes.append(
            {
                "question_tokens": int(text.sum()),
                "answer_tokens": one.answer_tokens // samples,
                "tiles": 1 if grid is not None else len(one.vision["pixel_values"]) // samples,
                "pixels": 0 if grid is None else int(grid[0].prod()) * model.vision_config.patch_size**2,
            }
        )
    return sizes


def run_case(name: str, work: Path) -> dict[str, Any]:
    """Measure a case in this process."""
    case = CASES[name]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29000 + os.getpid() % 2000)}
    config = run_config(case, work, work / "run")
    join_ranks()
    driver = Driver(config, case["stage"])
    driver.step(probed=False)  # makes AdamW's moments
    sizes = sizes_of(driver.batch, config)
    return {"sizes": sizes, **measure_memory(driver), **measure_time(driver, case["pair"])}
