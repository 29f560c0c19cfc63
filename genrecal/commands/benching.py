"""Commands that score subjects and set them side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from genrecal.commands.options import Pin, TrustedKeys

app = typer.Typer()

Mmmu = Annotated[Path | None, typer.Option(help="MMMU's parquet file, or a folder of them.")]
Compat = Annotated[str, typer.Option(help="Scoring rule: official, vlmevalkit or lmms.")]
JudgeUrl = Annotated[
    str | None,
    typer.Option(help="OpenAI-compatible endpoint that judges MM-Vet and reads MathVista and BLINK."),
]
JudgeModel = Annotated[str, typer.Option(help="The judge's model name.")]
JudgeRuns = Annotated[int, typer.Option(min=1, help="Judge runs to average.")]
JudgeReplay = Annotated[bool, typer.Option(help="Judge from kept replies alone; make no call.")]
JudgeControl = Annotated[
    bool, typer.Option(help="Grade with the hardened prompt and grade constant answers too.")
]
JudgePrompts = Annotated[
    list[Path] | None,
    typer.Option(
        help="The official file with a benchmark's judge prompt: MM-Vet's (v1, v2), MathVista's, BLINK's."
    ),
]


@app.command(
    epilog="Example: `genrecal bench runs/demo/build-int8 --mmb mmbench.tsv --mmmu MMMU/ --mm-vet mm-vet/`"
)
def bench(
    subject: Annotated[
        str,
        typer.Argument(help="A checkpoint folder (RUN/student), a build folder, or an address."),
    ],
    mmb: Annotated[Path | None, typer.Option(help="MMBench's TSV.")] = None,
    mmmu: Mmmu = None,
    mm_vet: Annotated[Path | None, typer.Option("--mm-vet", help="MM-Vet's folder or mm-vet.json.")] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Another benchmark and its files (docs/scoring.md); repeatable."
        ),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(help="What the subject learnt from, where no run is beside it; repeatable."),
    ] = None,
    overlap: Annotated[bool, typer.Option(help="Look for the questions in the training data.")] = True,
    compat: Compat = "official",
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Result folder; default: SUBJECT-bench.")] = None,
    greedy: Annotated[bool, typer.Option(help="Greedy answers instead of the model's own settings.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions at a time, for a checkpoint or an endpoint.")
    ] = 16,
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter of the checkpoint.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share a checkpoint's questions; a GPU each.")
    ] = 1,
    model: Annotated[str | None, typer.Option(help="The model's name at the endpoint.")] = None,
    host: Annotated[
        str | None, typer.Option(metavar="USER@HOST", help="Answer on this device: copy the build by ssh.")
    ] = None,
    ssh: Annotated[str, typer.Option(help="The ssh command, with options such as a port or a key.")] = "ssh",
    remote_command: Annotated[str, typer.Option(help="genrecal on the device.")] = "genrecal",
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = "gpt-4-0613",
    judge_prompt: JudgePrompts = None,
    judge_runs: JudgeRuns = 1,
    judge_cache: Annotated[
        Path | None, typer.Option(help="File of the judge's replies; default: OUTPUT/judge.jsonl.")
    ] = None,
    judge_replay: JudgeReplay = False,
    judge_control: JudgeControl = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each set, evenly spaced.")] = None,
    timed: Annotated[int, typer.Option(min=0, help="Queries that speed is measured with; 0: none.")] = 12,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare with this subject or bench folder, question by question.")
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POINTS|NAME=POINTS",
            help="Exit with 0 where it is shown to lose no more than this, 1 where more, 2 where unclear; "
            "any error has another code.",
        ),
    ] = None,
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Score a checkpoint, a build or an endpoint on benchmarks, and measure its speed, memory and size."""
    from bench.against import bench_against
    from bench.command import named_sets
    from bench.subject import remote_of
    from genrecal.data.subject_overlap import find_overlap

    code = bench_against(
        subject,
        baseline=baseline,
        max_drop=max_drop or (),
        sets=named_sets({"mmb": mmb, "mmmu": mmmu, "mmvet": mm_vet}, test or ()),
        output=output,
        device=device,
        greedy=greedy,
        batch_size=batch_size,
        adapter=adapter,
        processes=processes,
        model=model,
        remote=None if host is None else remote_of(host, ssh, remote_command),
        judge_url=judge_url,
        judge_model=judge_model,
        judge_prompts=judge_prompt or (),
        judge_runs=judge_runs,
        compat=compat,
        overlap=partial(find_overlap, training=tuple(training or ())) if overlap else None,
        judge_cache=judge_cache,
        judge_replay=judge_replay,
        judge_control=judge_control,
        timed_queries=timed,
        limit=limit,
        manifest_sha256=manifest_sha256,
        trusted_keys=tuple(str(key) for key in trusted_key or ()),
    )
    if code:
        raise typer.Exit(code)


@app.command(epilog="Example: `genrecal report runs/a/student-bench runs/a/build-int8-bench --output report`")
def report(
    benches: Annotated[
        list[Path], typer.Argument(help="Bench folders; the others are compared with the first.")
    ],
    output: Annotated[Path, typer.Option(help="Where report.html, report.md and report.json go.")],
    json: Annotated[bool, typer.Option("--json", help="Print report.json, and nothing else.")] = False,
) -> None:
    """One offline page of several benches: scores, differences, cost, frontier, samples."""
    from bench.against import report_command

    report_command(benches, output, as_json=json)


@app.command(epilog="Example: `genrecal score runs/demo/build-int8-bench --mmb mmbench.tsv`")
def score(
    answers: Annotated[Path, typer.Argument(help="A bench folder, or a JSON file of replies to one set.")],
    mmb: Annotated[Path | None, typer.Option(help="MMBench's TSV; default: where it lay then.")] = None,
    mmmu: Mmmu = None,
    mm_vet: Annotated[Path | None, typer.Option("--mm-vet", help="MM-Vet's folder or mm-vet.json.")] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Another benchmark and its files; repeatable."),
    ] = None,
    compat: Compat = "official",
    official_random: Annotated[
        bool, typer.Option(help="MMMU: draw what cannot be parsed, as the official script does.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Result folder; default: the bench folder.")] = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = "gpt-4-0613",
    judge_prompt: JudgePrompts = None,
    judge_runs: JudgeRuns = 1,
    judge_cache: Annotated[
        Path | None, typer.Option(help="File of the judge's replies; default: judge.jsonl in the folder.")
    ] = None,
    judge_replay: JudgeReplay = False,
    judge_control: JudgeControl = True,
) -> None:
    """Score saved answers again, without the model."""
    from bench.command import named_sets, open_judges
    from bench.rescore import score_command

    cache = (output or (answers if answers.is_dir() else answers.parent)) / "judge.jsonl"
    judges = open_judges(
        judge_model,
        judge_url,
        judge_cache or cache,
        prompts=judge_prompt or (),
        runs=judge_runs,
        replay_only=judge_replay,
        control=judge_control,
    )
    score_command(
        answers,
        sets=named_sets({"mmb": mmb, "mmmu": mmmu, "mmvet": mm_vet}, test or ()),
        output=output,
        judge=judges.judge,
        reader=judges.reader,
        judge_runs=judge_runs,
        compat=compat,
        official_random=official_random,
    )


@app.command(epilog="Example: `genrecal leaderboard runs/a/student-bench runs/a/build-int8-bench`")
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Bench folders.")],
    json: Annotated[bool, typer.Option("--json", help="JSON instead of Markdown.")] = False,
    output: Annotated[Path | None, typer.Option(help="A file instead of standard output.")] = None,
) -> None:
    """Runs in one table beside the rows of the paper's Tables 1 to 4 and Appendix G."""
    from bench.leaderboard import leaderboard_command

    leaderboard_command(runs, as_json=json, output=output)
