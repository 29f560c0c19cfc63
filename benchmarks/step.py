"""A training step against the parts that no engine can spare it, and a cached teacher against a live one.

    python -m benchmarks.step WORK    stage 2 at a pair of more than 100 million parameters, on the CPU

    parts    teacher forward, student forward and backward, Recalibrator and head forward and backward: the
             modules of the same stage without DeepSpeed, each alone, on the same micro-batch
    live     a step of the stage under its engine (ZeRO-3), teacher and all
    cached   the same with the teacher's features from a cache that a run has filled

All are measured in turns, round after round, so that what else the machine does meets them alike; ratios are
taken within a round. Seconds are the processor's, of the process's one thread: it waits for nobody, and what
other processes take is not in them.

    RESULTS/step.json    settings, sizes, versions, seconds of every round, the ratios' medians
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan.cases import ACCUMULATION, BASE, run_config, write_inputs
from benchmarks.plan.driver import Driver
from genrecal.core.config import parse_config
from genrecal.core.console import console
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions
from genrecal.data.batch import PairedBatch
from genrecal.data.mixture import read_mixture
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_processor
from genrecal.models.vlm import layer_features, predicting_features
from genrecal.train.comparison import Comparison
from genrecal.train.engine import DTYPES, engine_config, join_ranks
from genrecal.train.feed import padding
from genrecal.train.head import Branch
from genrecal.train.settings import RunConfig
from genrecal.train.setup import StageModels, build_stage
from genrecal.train.teacher_cache import stored_teachers

RESULTS = Path(__file__).parent / "results"
STAGE = "distill"
ROUNDS = 7


class Parts:
    """The stage's modules without an engine, and what each of them alone has to do for a micro-batch."""

    def __init__(self, models: StageModels, batch: PairedBatch) -> None:
        self.objective, self.batch = models.objective.train(), batch
        self.source: Any = self.objective.sources[0]
        self.routed_B = torch.ones(len(batch.ids), dtype=torch.bool)
        with torch.no_grad():
            self.read = self.source.read_teacher(batch.teachers[0], self.routed_B)
            self.z_BSD = layer_features(self.objective.student, batch.student, (1.0,))[0].detach()
        self.gradient_BSD = torch.randn_like(self.z_BSD) / self.z_BSD.numel()

    def teacher(self) -> None:
        self.source.read_teacher(self.batch.teachers[0], self.routed_B)

    def student(self) -> None:
        """Body and head; the Recalibrator's gradient comes from outside."""
        batch = self.batch.student
        z_BSD = layer_features(self.objective.student, batch, (1.0,))[0]
        mask_BA = batch.answer_mask_BA
        branch = Branch(z_TD=predicting_features(z_BSD, batch)[mask_BA], ce=1.0)
        sft = self.objective.head.losses([branch], batch.answer_ids_BA[mask_BA])
        (sft.total + (z_BSD * self.gradient_BSD).sum()).backward()

    def recalibrator(self) -> None:
        """With the teacher's head; from features that are there."""
        teacher, batch_l = self.read, self.batch.teachers[0]
        z_BSD = self.z_BSD.clone().requires_grad_()
        student = self.source.read_student(z_BSD, self.batch.student, batch_l)
        reading = self.source.recalibrate(student, teacher, batch_l, 0, project_prefix=False)
        branch = Branch(z_TD=reading.r_BAD[teacher.targets_BA], ce=1.0, kl=1.0)
        labels_T = batch_l.answer_ids_BA[teacher.targets_BA]
        self.source.head.losses([branch], labels_T, teacher.z_predict_TD).total.backward()


def measure(work: Path) -> dict[str, Any]:
    """Seconds of every round: the parts of a micro-batch, and whole optimizer steps."""
    case = {"pair": "mid", "stage": STAGE, **BASE}
    write_inputs("mid", work)
    live_config = run_config(case, work, work / "run")
    # In float32, as the stage computes: nothing is rounded, nothing is unpacked.
    cache = {"path": str(work / "cache"), "dtype": "fp32"}
    content = live_config.model_dump(mode="json") | {"teacher_cache": cache}
    cached_config = parse_config(content, RunConfig, where="benchmarks/step.py")
    live = Driver(live_config, STAGE)
    cached = Driver(cached_config, STAGE, batch=cached_batch(cached_config), heads_only=True)
    settings = engine_config(
        live_config.engine.model_copy(update={"zero_stage": 0}),
        live_config.optimizer,
        live_config.stage(STAGE),
    )
    models = build_stage(
        live_config,
        live_config.plan(STAGE),
        student_folder=live_config.student,
        recalibrator_folder=None,
        engine_settings=settings,
        comparison=Comparison(),
    )
    parameters = sum(parameter.numel() for parameter in models.objective.parameters())
    parts = Parts(models, live.batch)
    works: dict[str, Callable[[], Any]] = {
        "teacher": parts.teacher,
        "student": parts.student,
        "recalibrator": parts.recalibrator,
        "live": lambda: live.step(probed=False),
        "cached": lambda: cached.step(probed=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, do in works.items():
            started = time.process_time()
            do()
            if number:  # the first round makes AdamW's moments and fills torch's pools
                seconds[name].append(time.process_time() - started)
        console.print(f"round {number} of {ROUNDS}")
    return {"case": case, "parameters": parameters, "seconds": seconds}


def cached_batch(config: RunConfig) -> PairedBatch:
    """The first samples with the teacher's features from the cache; what is not in it is computed first."""
    samples = read_mixture(config.data)
    reader = PairReader(
        samples,
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in config.sources],
        max_tokens=config.data.max_tokens,
        reads=stored_teachers(config, config.plan(STAGE), samples),
    )
    rows = [reader[index] for index in range(config.stage(STAGE).micro_batch)]
    return padding(reader)(rows).to(torch.device("cpu"), DTYPES[config.engine.precision])


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds: a live step over its parts, and what a cache saves over the teacher's."""
    rounds = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]
    spared = [
        one["live"] / (ACCUMULATION * (one["teacher"] + one["student"] + one["recalibrator"]))
        for one in rounds
    ]
    saved = [(one["live"] - one["cached"]) / (ACCUMULATION * one["teacher"]) for one in rounds]
    return {
        "step_over_parts": statistics.median(spared),
        "saved_over_teacher": statistics.median(saved),
        "cached_over_live": statistics.median(one["cached"] / one["live"] for one in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for models, data and the cache")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # any free one
    join_ranks()
    shutil.rmtree(arguments.work / "cache", ignore_errors=True)
    found = measure(arguments.work)
    record = {
        "command": "python -m benchmarks.step WORK",
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": installed_versions(),
        **found,
        "ratios": ratios(found["seconds"]),
    }
    write_json(arguments.results / "step.json", record)
    for name, value in record["ratios"].items():
        console.print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
