"""Predicted against measured: memory and step time of stages that run on this machine's CPU.

    python -m benchmarks.plan WORK     every case that has no result yet, each in a fresh process
    python -m benchmarks.plan          the table of docs/plan.md

Models have random weights; the samples of a case are all of one length: mean and longest are the same.

    memory   what torch's allocator held, from its own reports of every allocation (torch.profiler)
    time     of an optimizer step, beside the speed of matrix products, copies, new pages and calls in the
             same process between the micro-steps; in seconds of its one thread, which waits for nobody

    RESULTS/CASE.json             settings, sizes, versions, what was measured
    RESULTS/models/NAME/          the config.json of each model: all that a prediction reads
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Config, Qwen2Model

from genrecal.core.config import parse_config
from genrecal.core.files import read_json, write_json
from genrecal.core.manifest import installed_versions
from genrecal.data.batch import PairedBatch
from genrecal.data.mixture import read_mixture
from genrecal.data.pair import PairReader
from genrecal.demo.pair import InternVLShape, Qwen2VLShape, write_internvl, write_qwen2_vl
from genrecal.models.processors import load_processor
from genrecal.plan.batches import SampleSizes, batch_of, paired_batch
from genrecal.plan.memory import BUCKET, REDUCE_BUCKET, memory_of, weight_bytes
from genrecal.plan.parameters import count_parameters
from genrecal.plan.recorder import Operation, Recorder
from genrecal.plan.shapes import read_config, stage_as_shapes
from genrecal.plan.trace import trace
from genrecal.train.comparison import Comparison
from genrecal.train.engine import DTYPES, engine_config, join_ranks, start
from genrecal.train.feed import padding
from genrecal.train.objective import term_name
from genrecal.train.reading import ReadingProbe
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage

RESULTS = Path(__file__).parent / "results" / "plan"
CORPUS = [
    "what is in the picture?",
    "a red circle is left of a blue square",
    "user\nassistant\n0123456789",
] * 8
STEPS, ACCUMULATION = 4, 2
SAMPLES = 8
# Shapes, and the sizes of the embedding matrices: rows beyond the tokenizer's are padding, as in Qwen's own.
PAIRS: dict[str, dict[str, Any]] = {
    "tiny": {
        "teacher": InternVLShape(tile=56, patch=14, vision_hidden=64, vision_heads=2, hidden=128, heads=4),
        "student": Qwen2VLShape(patch=14, vision_hidden=64, hidden=96, heads=4, intermediate=256),
        "rows": {"teacher": 2000, "student": 1500},
    },
    "mid": {
        "teacher": InternVLShape(
            tile=224,
            patch=14,
            vision_hidden=384,
            vision_layers=6,
            vision_heads=6,
            hidden=768,
            layers=8,
            heads=12,
            key_value_heads=4,
            intermediate=2304,
        ),
        "student": Qwen2VLShape(
            patch=14,
            max_pixels=448 * 448,
            vision_hidden=320,
            vision_layers=4,
            vision_heads=5,
            hidden=512,
            layers=6,
            heads=8,
            key_value_heads=2,
            intermediate=1536,
        ),
        "rows": {"teacher": 24000, "student": 16000},
    },
}
BASE = {"zero_stage": 3, "precision": "fp32", "gradient_checkpointing": True, "micro_batch": 2, "ranks": 1}
CASES: dict[str, dict[str, Any]] = {
    f"{pair}-{stage}": {"pair": pair, "stage": stage, **BASE}
    for pair in PAIRS
    for stage in ("recalibrate", "distill", "finetune")
} | {
    "mid-distill-kept": {"pair": "mid", "stage": "distill", **BASE, "gradient_checkpointing": False},
    "mid-finetune-kept": {"pair": "mid", "stage": "finetune", **BASE, "gradient_checkpointing": False},
    "mid-finetune-4": {"pair": "mid", "stage": "finetune", **BASE, "micro_batch": 4},
    "mid-finetune-zero0": {"pair": "mid", "stage": "finetune", **BASE, "zero_stage": 0},
    "tiny-distill-bf16": {"pair": "tiny", "stage": "distill", **BASE, "precision": "bf16"},
    "tiny-finetune-bf16": {"pair": "tiny", "stage": "finetune", **BASE, "precision": "bf16"},
    "tiny-finetune-zero1": {
        "pair": "tiny",
        "stage": "finetune",
        **BASE,
        "zero_stage": 1,
        "precision": "bf16",
    },
    "tiny-finetune-zero2": {
        "pair": "tiny",
        "stage": "finetune",
        **BASE,
        "zero_stage": 2,
        "precision": "bf16",
    },
}


def run_config(case: dict[str, Any], work: Path, output: Path) -> RunConfig:
    """The run of a case."""
    pair = work / case["pair"]
    stage = {"micro_batch": case["micro_batch"], "accumulation": ACCUMULATION}
    content = {
        "student": str(pair / "student"),
        "teacher": str(pair / "teacher"),
        "output": str(output),
        "data": {"sources": [{"path": str(pair / "data.json")}]},
        "engine": {key: case[key] for key in ("zero_stage", "precision", "gradient_checkpointing", "ranks")},
        "stages": {case["stage"]: stage},
    }
    return parse_config(content, RunConfig, where="benchmarks/plan.py")


def write_inputs(name: str, work: Path) -> None:
    """Models and data of a pair below WORK, and the models' config.json below RESULTS."""
    shapes, folder = PAIRS[name], work / name
    if (folder / "data.json").is_file():
        return
    for side, write in (("teacher", write_internvl), ("student", write_qwen2_vl)):
        write(folder / side, CORPUS, shape=shapes[side], seed=0)  # type: ignore[operator]
        config = AutoConfig.from_pretrained(folder / side)
        config.get_text_config().vocab_size = shapes["rows"][side]
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder / side)
        kept = RESULTS / "models" / f"{name}-{side}"
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / side / "config.json", kept / "config.json")
    tile = shapes["teacher"].tile
    Image.effect_noise((2 * tile, tile), 90).convert("RGB").save(folder / "image.png")
    turns = [
        {"from": "human", "value": "<image>\n" + "what is in the picture? " * 4},
        {"from": "gpt", "value": "a red circle is left of a blue square " * 6},
    ]
    rows = [{"id": str(number), "image": "image.png", "conversations": turns} for number in range(SAMPLES)]
    (folder / "data.json").write_text(json.dumps([{**row, "domain": "knowledge"} for row in rows]))


class Calibration:
    """How fast this process computes, moves and calls, measured between the micro-steps."""

    def __init__(self, precision: str, *, tokens: int, width: int) -> None:
        """Make what is measured.

        Args:
            precision: of the engine.
            tokens: rows of the features.
            width: of the features; an MLP is three times as wide.
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._left = torch.randn(tokens, width).to(dtype)
        self._right = torch.randn(width, 3 * width).to(dtype)
        self._features = torch.randn(tokens, 3 * width).to(dtype)
        self._nothing = torch.randn(1, 1).to(dtype)
        self._large = torch.randn(16 * 2**20)
        shape = Qwen2Config(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        self._model = Qwen2Model(shape).to(dtype)
        self._ids = torch.zeros(1, 4, dtype=torch.int64)
        with Recorder("calls") as recorder:
            self._call()
        self._calls = len(recorder.operations)
        with Recorder("moves") as recorder:
            self._between_products(self._features)
        self._moved = sum(one.moved for one in recorder.operations)
        self._product = 2 * tokens * width * 3 * width
        self.readings: dict[str, list[float]] = {}

    def measure(self) -> None:
        """One more reading of each; products and copies without what the calls alone take."""
        nothing = self._nothing
        product = _seconds(lambda: self._left @ self._right) - _seconds(lambda: nothing @ nothing)
        moves = _seconds(lambda: self._between_products(self._features))
        moves -= _seconds(lambda: self._between_products(nothing))
        for name, value in {
            "flops_per_s": self._product / product,
            "bytes_per_s": self._moved / moves,
            "fresh_bytes_per_s": 4 * self._large.numel() / _seconds(lambda: torch.ones_like(self._large)),
            "seconds_per_operation": _seconds(self._call) / self._calls,
        }.items():
            self.readings.setdefault(name, []).append(value)

    def _call(self) -> None:
        """A model of almost nothing: what Python and torch take for each call."""
        self._model(self._ids, use_cache=False).last_hidden_state.sum().backward()

    def _between_products(self, x: torch.Tensor) -> torch.Tensor:
        """What a decoder layer does between its products: a norm, a gate, a sum."""
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x + torch.nn.functional.silu(normed) * x


def _seconds(work: Callable[[], Any], least: float = 0.02) -> float:
    """Processor seconds of one call, of as many as take `least` seconds, and at least five."""
    started, calls = time.process_time(), 0
    while calls < 5 or time.process_time() - started < least:
        work()
        calls += 1
    return (time.process_time() - started) / calls


class Driver:
    """A stage under its engine, step by step; every other step is probed, as in training."""

    def __init__(
        self, config: RunConfig, name: str, *, batch: PairedBatch | None = None, heads_only: bool = False
    ) -> None:
        """Start the engine.

        Args:
            config: the run.
            name: its stage.
            batch: what every micro-step reads; default: the first samples.
            heads_only: the batch has the teachers' features, so that their bodies are not loaded.
        """
        self.config, self.name = config, name
        stage, settings = config.plan(name), config.stage(name)
        self.batch = _batch(config, name) if batch is None else batch
        deepspeed_settings = engine_config(config.engine, config.optimizer, settings)
        models = build_stage(
            config,
            stage,
            student_folder=config.student,
            recalibrator_folder=None,
            engine_settings=deepspeed_settings,
            comparison=Comparison(),
            heads_only=heads_only,
        )
        self.engine = start(models.objective, deepspeed_settings)
        self.engine.train()
        places = range(len(models.objective.sources) or 1)
        self.scales = {term_name(term, place): 1.0 for term in stage.terms for place in places}

    def step(self, *, probed: bool, before: Callable[[], Any] = lambda: None) -> float:
        """One optimizer step; returns its processor seconds. `before` runs ahead of each micro-step."""
        probe = ReadingProbe() if probed else None
        scales = self.scales | ({"sft": 1.0} if probed else {})
        seconds = 0.0
        for _ in range(ACCUMULATION):
            before()
            started = time.process_time()
            self.engine.backward(self.engine(self.batch, scales, probe).total)
            self.engine.step()
            seconds += time.process_time() - started
        return seconds


def _batch(config: RunConfig, name: str) -> PairedBatch:
    reads = config.sources if config.plan(name).reads_teacher else ()
    reader = PairReader(
        read_mixture(config.data),
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in reads],
        max_tokens=config.data.max_tokens,
    )
    rows = [reader[index] for index in range(config.stage(name).micro_batch)]
    return padding(reader)(rows).to(torch.device("cpu"), DTYPES[config.engine.precision])


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, nargs="?", help="Folder for models and runs; none: the table.")
    parser.add_argument("--case", choices=CASES, help="One case, in this process; prints what it measured.")
    options = parser.parse_args()
    if options.work is None:
        print(table())
        return
    if options.case:
        print(json.dumps(run_case(options.case, options.work)))
        return
    for pair in PAIRS:
        write_inputs(pair, options.work)
    for name, case in CASES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            continue
        command = ["-m", "benchmarks.plan", str(options.work), "--case", name]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        shown = " ".join(["python", *command[:2], "WORK", *command[3:]])
        write_json(path, {"command": shown, "case": case, **found, "versions": installed_versions()})
        print(name, "measured")


if __name__ == "__main__":
    main()
