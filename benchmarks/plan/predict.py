"""What the plan says of a case, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan.cases import ACCUMULATION, CASES, RESULTS, run_config
from genrecal.core.files import read_json
from genrecal.plan.batches import SampleSizes, batch_of, paired_batch
from genrecal.plan.memory import BUCKET, REDUCE_BUCKET, memory_of, weight_bytes
from genrecal.plan.parameters import count_parameters
from genrecal.plan.recorder import Operation
from genrecal.plan.shapes import read_config, stage_as_shapes
from genrecal.plan.trace import trace
from genrecal.train.engine import DTYPES
from genrecal.train.settings import RunConfig


def predict(measured: dict[str, Any], folder: Path = RESULTS) -> dict[str, float]:
    """What the plan says of a case, from the config.json of its models and the sizes of its samples.

    Seconds are the sum over all operations of the longer of computing and moving, at the speeds that were
    measured beside them, and of a call's own time.
    """
    case = measured["case"]
    config, name = run_config(case, folder, folder / "run"), case["stage"]
    models = [read_config(folder / "models" / f"{case['pair']}-{side}") for side in ("student", "teacher")]
    batches = [
        batch_of(model, SampleSizes(**size | {"pixels": size["pixels"] or None}), samples=case["micro_batch"])
        for model, size in zip(models, measured["sizes"], strict=False)
    ]
    batch = paired_batch(batches[0], batches[1:], domain="knowledge")
    batch = batch.to(torch.device("cpu"), DTYPES[config.engine.precision])
    objective, stage = stage_as_shapes(config, name, models[0], models[1:]), config.plan(name)
    parameters = count_parameters(objective)
    zero = config.engine.zero_stage
    probed = trace(objective, stage, batch, zero_stage=zero, probed=True)
    memory = memory_of(parameters, probed, config.engine, ranks=case["ranks"])
    speed = {name: statistics.median(values) for name, values in measured["speed"].items()}
    micro_step = trace(objective, stage, batch, zero_stage=zero)
    step = ACCUMULATION * seconds_of(micro_step.operations, speed)
    return {
        "parameters": parameters.total,
        "trained": parameters.trained_total,
        "bucket_bytes": memory.held.get("reduce bucket", 0),
        "bucket_on_top": REDUCE_BUCKET * weight_bytes(config.engine) * (BUCKET in memory.moments),
        "resting_bytes": memory.resting,
        "peak_bytes": memory.peak,
        "seconds": step + engine_seconds(parameters.trained_total, config, speed),
        "product_seconds": ACCUMULATION * sum(micro_step.flops.values()) / speed["flops_per_s"],
    }


# Tensors beyond this size are new pages of the system's each time (glibc's largest mmap threshold).
FRESH_BYTES = 32 * 2**20


def seconds_of(operations: Sequence[Operation], speed: dict[str, float]) -> float:
    """Of operations at these speeds."""
    return sum(
        max(one.flops / speed["flops_per_s"], one.moved / speed["bytes_per_s"])
        + (one.made / speed["fresh_bytes_per_s"] if one.made > FRESH_BYTES else 0.0)
        + speed["seconds_per_operation"]
        for one in operations
    )


def engine_seconds(trained: int, config: RunConfig, speed: dict[str, float]) -> float:
    """What DeepSpeed and AdamW do with a step's gradients: bytes of a trained parameter, from their code.

    Each micro-step: into the bucket, into one piece, reduced, added to the sums. Each step: the norm, one
    piece, the clip, and AdamW's nine passes; three pieces of it are new.
    """
    weight = weight_bytes(config.engine)
    moved, made = ACCUMULATION * (6 * weight + 10) + 100, ACCUMULATION * 2 * weight + 12
    if config.engine.zero_stage == 0:  # added where they are, and stepped parameter by parameter
        moved, made = ACCUMULATION * 12 + 72, 0
    fresh = made if trained * 4 > FRESH_BYTES else 0
    return trained * (moved / speed["bytes_per_s"] + fresh / speed["fresh_bytes_per_s"])


def compare(measured: dict[str, Any], predicted: dict[str, float]) -> dict[str, float]:
    """Both in the same terms: bytes held and on top, without the bucket; seconds of a step."""
    bucket, on_top = predicted["bucket_bytes"], predicted["bucket_on_top"]
    return {
        "parameters": predicted["parameters"],
        "trained": predicted["trained"],
        "held_predicted": predicted["resting_bytes"] - bucket,
        "held_measured": measured["resting_bytes"] - bucket,
        "on_top_predicted": predicted["peak_bytes"] - predicted["resting_bytes"] - on_top,
        "on_top_measured": measured["peak_bytes"] - measured["resting_bytes"] - on_top,
        "seconds_predicted": predicted["seconds"],
        "seconds_measured": statistics.median(measured["seconds"]),
    }


def table(folder: Path = RESULTS) -> str:
    """Predicted and measured side by side, as Markdown; without DeepSpeed's constant bucket."""
    lines = [
        "| case | parameters, trained | held, MB | ratio | on top, MB | ratio | step, s | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in CASES:
        measured = read_json(folder / f"{name}.json")
        found = compare(measured, predict(measured, folder))
        sizes = f"{found['parameters'] / 1e6:.1f} M, {found['trained'] / 1e6:.1f} M"
        cells = [name, sizes]
        for key, unit in (("held", 1e6), ("on_top", 1e6), ("seconds", 1)):
            predicted, seen = (found[f"{key}_{side}"] / unit for side in ("predicted", "measured"))
            digits = 2 if key == "seconds" else 1
            cells += [f"{predicted:,.{digits}f} / {seen:,.{digits}f}", f"{predicted / seen:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
