"""The whole chain on one machine: read this to see what `genrecal demo` does.

    data -> teacher, student -> GenRecal | SFT | SFT on the teacher's answers -> builds -> bench -> report

    OUTPUT/report.html, report.md       over all seeds
    OUTPUT/seed-0/results.json          what the report is made of; the folders beside it hold the rest
        data/ teacher/ student/ runs/genrecal/ runs/sft/ runs/sft-teacher/ builds/ bench/

Every step is skipped when it was finished before. Every figure comes from files that this demo wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.run import NAME, TIMED_QUERIES, run_bench
from bench.subject import open_subject
from bench.tasks import TASKS
from bench.types import SubjectSpec
from genrecal.core.config import dump_config, load_config
from genrecal.core.console import console
from genrecal.core.errors import ConfigError
from genrecal.core.files import read_json, write_json, write_text
from genrecal.core.manifest import installed_versions
from genrecal.demo.make import BATCH, DemoData, labels_right, make_data, make_vlm, run_config
from genrecal.demo.report import write_report
from genrecal.demo.results import gather_results
from genrecal.demo.settings import DemoConfig
from genrecal.demo.summary import print_summary
from genrecal.export.build import export_run
from genrecal.figures.draw import draw_figures
from genrecal.figures.runs import open_runs
from genrecal.train.labels import FOLDER as LABELS
from genrecal.train.launch import distill

Value = TypeVar("Value")

# Questions on which torch and ONNX Runtime are compared at export.
PARITY_PROMPTS = 50

# Subject -> its row's name in the table, in the table's order.
SUBJECTS = {
    "teacher": "teacher",
    "baseline": "student before",
    "sft": "SFT",
    "sft-teacher": "SFT on the teacher's answers",
    "genrecal": "GenRecal",
    "genrecal-int8": "GenRecal, int8 build",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The folders that one seed's training and export left."""

    teacher: Path
    student: Path
    runs: dict[str, Path]  # sft, sft-teacher, genrecal
    builds: dict[str, Path]  # fp32, int8

    def subject(self, name: str) -> Path:
        """The folder that the bench opens."""
        fixed = {"teacher": self.teacher, "baseline": self.student, "genrecal-int8": self.builds["int8"]}
        return fixed.get(name) or self.runs[name] / "student"


class Clock:
    """Seconds of each step, kept on disk, so that a resumed demo still knows what the first part took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    def step(self, name: str, work: Callable[[], Value]) -> Value:
        console.rule(name)
        started = time.perf_counter()
        value = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        write_json(self.path, self.seconds)
        return value


def run_demo(config: DemoConfig, *, seeds: int, output: Path) -> None:
    """Run the chain for seeds 0..seeds-1 and write the report.

    Raises:
        GenrecalError: a step failed, or `output` holds a demo with other settings.
    """
    saved = output / "demo.yaml"
    if saved.is_file():
        if load_config(saved, DemoConfig) != config:
            raise ConfigError("holds a demo with other settings", where=output, fix="Give another --output")
    elif output.exists() and any(output.iterdir()):
        raise ConfigError("is not empty and holds no demo", where=output, fix="Give another --output")
    write_text(saved, dump_config(config))
    folders = [output / f"seed-{seed}" for seed in range(seeds)]
    for seed, folder in enumerate(folders):
        if not (folder / "results.json").is_file():
            _run_seed(config, folder, seed)
    figures, _ = draw_figures(open_runs([folder / "runs" / "genrecal" for folder in folders]), formats=())
    page = write_report(folders, output, figures=figures)
    print_summary(folders)
    console.print(f"report: {page}")


def _run_seed(config: DemoConfig, folder: Path, seed: int) -> None:
    clock = Clock(folder / "seconds.json")
    data = clock.step("data", lambda: make_data(config, folder / "data", seed=seed))
    made = _train(config, folder, data, seed, clock)
    for name in SUBJECTS:
        clock.step(f"bench: {name}", lambda name=name: _bench(made.subject(name), folder, name, data))
    # Answers of the fp32 build, to see how many the quantized one changes; it is no row of the table.
    clock.step("bench: fp32 build", lambda: _bench(made.builds["fp32"], folder, "fp32", data, timed=0))
    results = gather_results(
        seed=seed,
        folder=folder,
        subjects=SUBJECTS,
        runs=made.runs,
        checkpoints={name: made.subject(name) for name in SUBJECTS if name != "genrecal-int8"},
        test=data.test,
        labels=labels_right(data, made.runs["sft-teacher"] / LABELS),
        seconds=clock.seconds,
    )
    write_json(folder / "results.json", results | {"versions": installed_versions()})


def _train(config: DemoConfig, folder: Path, data: DemoData, seed: int, clock: Clock) -> Made:
    teacher = clock.step(
        "teacher",
        lambda: make_vlm(
            config,
            folder / "teacher",
            shape=config.teacher.shape,
            warm=config.teacher.warm,
            pretrain=config.teacher.pretrain,
            data=data.pretrain_teacher,
            seed=seed,
        ),
    )
    student = clock.step(
        "student",
        lambda: make_vlm(
            config,
            folder / "student",
            shape=config.student.shape,
            warm=config.student.warm,
            pretrain=config.student.pretrain,
            data=data.pretrain_student,
            # Another seed: the pair shares neither tokenizer nor drawings of the warm-up.
            seed=seed + 1000,
        ),
    )
    stages = {"recalibrate": config.recalibrate, "distill": config.distill, "finetune": config.finetune}
    # The baselines see the same batches as the student does in stages 2 and 3.
    baseline = {"adapt": config.distill, "finetune": config.finetune}
    plans = {
        "genrecal": ("genrecal", teacher, stages),
        "sft": ("sft", None, baseline),
        "sft-teacher": ("seqkd", teacher, baseline),
    }
    runs = {}
    for name, (method, of_teacher, settings) in plans.items():
        run = run_config(
            config,
            method=method,
            student=student,
            teacher=of_teacher,
            data=data.distill,
            output=folder / "runs" / name,
            stages=settings,
            seed=seed,
        )
        clock.step(f"run: {name}", lambda run=run: distill(run))
        runs[name] = run.output
    mmvet = TASKS["mmvet"]
    prompts = [mmvet.prompt(row).parts for row in mmvet.load(data.test.mmvet)[:PARITY_PROMPTS]]
    builds = {}
    for precision in ("fp32", "int8"):
        build = folder / "builds" / precision
        if not build.is_dir():
            clock.step(
                f"export: {precision}",
                lambda build=build, precision=precision: export_run(
                    runs["genrecal"],
                    build,
                    precision=precision,
                    # The report shows what it is; a student of a few steps may not reach it.
                    min_agreement=0.0,
                    parity_prompts=prompts,
                ),
            )
        builds[precision] = build
    return Made(teacher=teacher, student=student, runs=runs, builds=builds)


def _bench(subject: Path, folder: Path, name: str, data: DemoData, *, timed: int = TIMED_QUERIES) -> None:
    output = folder / "bench" / name
    if (output / NAME).is_file():
        return
    sets = {"mmb": data.test.mmb, "mmmu": data.test.mmmu, "mmvet": data.test.mmvet}
    spec = SubjectSpec(path=subject, name=SUBJECTS.get(name, name), batch_size=BATCH)
    run_bench(open_subject(spec), sets, output, timed_queries=timed)
