"""Commands that train: distil, cache, plan, convert, and what a run leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a key of the config; repeatable."),
]


@app.command(
    epilog="Example: `genrecal distill configs/paper/qwen2_vl_2b_from_internvl2_5_78b.yaml --set seed=1`"
)
def distill(
    config: Annotated[Path, typer.Argument(help="The run's YAML config.")],
    overrides: Overrides = None,
    launch: Annotated[str, typer.Option(help="local, torchrun (on every node) or slurm.")] = "local",
    submit: Annotated[bool, typer.Option("--submit", help="With slurm: hand the script to sbatch.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")
    ] = False,
) -> None:
    """Run the stages of a method; the same command again resumes."""
    from genrecal.core.config import load_config
    from genrecal.train.settings import RunConfig

    settings = load_config(config, RunConfig, overrides or ())
    if dry_run:
        from genrecal.plan.command import dry_run as plan_only

        plan_only(settings)
        return
    from genrecal.train.launch import distill as run

    run(
        settings,
        launch=launch,
        arguments=[str(config), *(word for override in overrides or () for word in ("--set", override))],
        submit=submit,
    )
    _leave_as_rank()


@app.command(
    epilog="Example: `genrecal cache configs/paper/qwen2_vl_2b_from_internvl2_5_78b.yaml"
    " --set teacher_cache.path=features`"
)
def cache(
    config: Annotated[Path, typer.Argument(help="A run's YAML config with teacher_cache.")],
    overrides: Overrides = None,
) -> None:
    """Compute the teacher's features that a run reads, before any run; the same command again goes on."""
    from genrecal.core.config import load_config
    from genrecal.train.launch import fill_cache
    from genrecal.train.settings import RunConfig

    fill_cache(load_config(config, RunConfig, overrides or ()))
    _leave_as_rank()


def _leave_as_rank() -> None:
    if "RANK" in os.environ:
        from genrecal.train.engine import leave

        leave()


@app.command(
    epilog="Example: `genrecal plan configs/paper/internvl2_5_8b_from_internvl2_5_78b.yaml"
    " --plan configs/plan/paper.yaml`"
)
def plan(
    config: Annotated[Path, typer.Argument(help="The run's YAML config.")],
    overrides: Overrides = None,
    file: Annotated[
        Path | None, typer.Option("--plan", help="YAML file with the machine, the workload and the time.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="a100-40gb, a100-80gb, h100 or h200.")] = None,
    ranks: Annotated[int | None, typer.Option(help="GPUs; default: the config's.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples; default: those on disk.")] = None,
    question_tokens: Annotated[int | None, typer.Option(help="Text tokens of a question, the mean.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer, the mean.")] = None,
    tiles: Annotated[
        list[int] | None, typer.Option(help="Tiles of an image; repeatable: the first is planned in full.")
    ] = None,
    utilisation: Annotated[float | None, typer.Option(help="Share of the peak that is reached.")] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of config.json folders, for models not on disk.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="File for the plan as JSON.")] = None,
) -> None:
    """Memory, FLOPs, traffic, disk and days of a run, from configs alone: no GPU, no weights."""
    from genrecal.core.config import load_config
    from genrecal.plan.command import plan_command
    from genrecal.train.settings import RunConfig

    plan_command(
        load_config(config, RunConfig, overrides or ()),
        file=file,
        given={
            "machine.gpu": gpu,
            "machine.ranks": ranks,
            "workload.samples": samples,
            "workload.question_tokens": question_tokens,
            "workload.answer_tokens": answer_tokens,
            "workload.tiles": tiles or None,
            "time.utilisation": utilisation,
            "models": models,
        },
        json_file=json,
    )


@app.command(epilog="Example: `genrecal convert InternVL2_5-8B models/InternVL2_5-8B`")
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder in its authors' own layout.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it is not there yet.")],
) -> None:
    """Convert an InternVL or NVLM-D checkpoint that brings its own model code; none of it is run."""
    from genrecal.convert.checkpoint import convert as run

    run(source, output)


@app.command(
    epilog="Example: `genrecal pairs --teacher models/InternVL2_5-78B --student models/Qwen2-VL-7B-Instruct`"
)
def pairs(
    teacher: Annotated[list[Path], typer.Option(help="Folder of a teacher; repeatable.")],
    student: Annotated[list[Path], typer.Option(help="Folder of a student; repeatable.")],
) -> None:
    """Which methods serve which pairs, and why others do not (the paper's Figure 8); loads no weights."""
    from genrecal.train.pairing import pair_table, print_pairs

    print_pairs(pair_table(teacher, student))


@app.command(epilog="Example: `genrecal figures runs/sft runs/genrecal --output figures`")
def figures(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    output: Annotated[Path, typer.Option(help="Where figures, CSV files and figures.html go.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="svg or png; repeatable. Default: both.")
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="Bench folder of a student as it was; repeatable. Default: STUDENT-bench."),
    ] = None,
) -> None:
    """Draw the paper's figures from runs; what lacks its data is skipped and named."""
    from genrecal.figures.draw import FORMATS, figures_command

    figures_command(runs, output, formats=formats or FORMATS, baselines=baseline or ())


@app.command(epilog="Example: `genrecal demo --seeds 3`")
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Repeat everything with this many seeds.")] = 1,
    output: Annotated[Path, typer.Option(help="Where everything goes; a second call resumes.")] = Path(
        "demo_output"
    ),
    config: Annotated[Path | None, typer.Option(help="A YAML file with other sizes and settings.")] = None,
    overrides: Overrides = None,
) -> None:
    """The whole chain on this machine: data, two VLMs, distillation, export, bench, one report."""
    from genrecal.demo.chain import run_demo
    from genrecal.demo.settings import load_demo_config

    run_demo(load_demo_config(config, overrides or ()), seeds=seeds, output=output)
