"""The command line: parse, make a config, one call. Imports stand inside the commands, so `--help` is quick
and a machine without torch can run the commands that need none."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genrecal.core.console import errors
from genrecal.core.errors import ConfigError, GenrecalError


class OneLineErrors(TyperGroup):
    """Turns every error that a user can cause into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GenrecalError as error:
            if error.reported:
                raise typer.Exit(error.exit_code) from None
            fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            extra = EXTRA_OF.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            fail(f"'{error.name}' is not installed. Install genrecal[{extra}]", ConfigError.exit_code)
        except OSError as error:
            if error.errno is None:
                raise
            fail(f"{error.filename or 'disk'}: {error.strerror}", GenrecalError.exit_code)


# Which extra brings a package that a command found missing.
EXTRA_OF = {
    "torch": "train",
    "transformers": "train",
    "deepspeed": "train",
    "peft": "train",
    "sklearn": "train",
    "safetensors": "train",
    "optimum": "export",
    "onnx": "export",
    "onnxruntime": "edge",
    "tokenizers": "edge",
    "cryptography": "sign",
    "anyio": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "starlette": "serve",
    "pyarrow": "bench",
    "datasets": "train",
    "webdataset": "train",
    "braceexpand": "train",
    "filelock": "train",
    "sentencepiece": "train",
    "google": "train",  # protobuf
    "pandas": "bench",
    "scipy": "bench",
    "openai": "bench",
    "tenacity": "bench",
    "huggingface_hub": "bench",
    "psutil": "bench",
    "matplotlib": "bench",
}


def fail(line: str, exit_code: int) -> None:
    errors.print(f"error: {line}", soft_wrap=True, markup=False)
    raise typer.Exit(exit_code)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distil a large vision-language model into a small one that runs on an edge device without torch.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look after training and test data.")
app.add_typer(data_app, name="data")


def _version(asked: bool) -> None:
    from genrecal import __version__

    if asked:
        typer.echo(f"genrecal {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None: ...


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a key of the config; repeatable."),
]

Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")]
JudgePrompts = Annotated[
    list[Path] | None,
    typer.Option(
        help="File with the published prompt, or MM-Vet's evaluator, which holds it; of v1 and of v2."
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(min=0.001, help="Memory in GB that it may take; default: most of what is free."),
]
Pin = Annotated[
    str | None,
    typer.Option("--manifest-sha256", metavar="SHA256", help="Open the build with this manifest alone."),
]
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        help="Public key (PEM): open a build alone that it has signed; repeatable: any of them.",
    ),
]


def _opener(
    build: Path,
    device: str,
    threads: int | None,
    memory_gb: float | None,
    manifest_sha256: str | None,
    trusted_keys: list[Path] | None,
) -> Callable[[], Any]:
    """What opens a build as the options say, when its turn comes: other inputs are checked first."""
    from edge.model import EdgeModel

    if threads is not None and threads > (os.cpu_count() or threads):
        raise ConfigError(
            f"{threads} are more than the {os.cpu_count()} cores of this machine", where="--threads"
        )
    return partial(
        EdgeModel.open,
        build,
        device=device,
        threads=threads,
        memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        manifest_sha256=manifest_sha256,
        trusted_keys=trusted_keys or (),
    )


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


@app.command(epilog="Example: `genrecal export runs/demo --int8`")
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a plain student folder.")],
    int8: Annotated[bool, typer.Option("--int8", help="8 bits a weight (the default).")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="4 bits a weight of the language model.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Leave the weights as they are.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and activations in float16.")] = False,
    target: Annotated[
        str, typer.Option(help="What the build is made for: cpu, jetson or jetson-tensorrt.")
    ] = "cpu",
    output: Annotated[Path | None, typer.Option(help="The build folder; default: RUN/build-int8.")] = None,
    client: Annotated[
        str, typer.Option("--for", metavar="CLIENT", help="What runs the build: genrecal or transformers.js.")
    ] = "genrecal",
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA adapter of the student; merged first, and proven.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of answer tokens that must be the checkpoint's; default: int8 0.98, int4 0.95.",
        ),
    ] = None,
    keep_fp16: Annotated[
        str | None,
        typer.Option(metavar="auto|NAME,...", help="Weights of the language model that stay in float16."),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the build; private.")
    ] = None,
    push_student: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the student too; private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="What is uploaded anew is public.")] = False,
) -> None:
    """Write an ONNX build of a student, with a parity report."""
    asked = [
        name for name, given in (("int8", int8), ("int4", int4), ("fp16", fp16), ("fp32", fp32)) if given
    ]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in asked)} exclude each other", where="export")
    from genrecal.export.build import export_run
    from genrecal.export.publish import publish
    from genrecal.export.student import find_student

    precision = asked[0] if asked else "int8"
    suffix = precision if target == "cpu" else f"{precision}-{target}"
    build = export_run(
        run,
        output or run / f"build-{suffix}",
        precision=precision,
        target=target,
        client=client,
        adapter=adapter,
        min_agreement=min_agreement,
        keep_fp16=keep_fp16.split(",") if keep_fp16 and keep_fp16 != "auto" else keep_fp16 or (),
    )
    for folder, repository in ((build, push_to_hub), (find_student(run).folder, push_student)):
        if repository is not None:
            typer.echo(f"uploaded: {publish(folder, repository, private=not public)}")


@app.command(epilog="Example: `genrecal lint runs/demo/build-fp16 --target jetson`")
def lint(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    target: Annotated[
        str | None, typer.Option(help="cpu, jetson or jetson-tensorrt; default: what the build is made for.")
    ] = None,
) -> None:
    """Check that a device can run every node of a build where it belongs; exit code 5 where it cannot."""
    from genrecal.export.linter import lint_build

    lint_build(build, target)


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


@app.command(epilog='Example: `genrecal ask runs/demo/build-int8 chart.png "Which bar is highest?"`')
def ask(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... [QUESTION]",
            help="Image files, then what to ask about them. Without a question, each line of standard input "
            "is one, and what was said before is remembered.",
        ),
    ],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0: the likeliest token; default: the build's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, where the build samples.")] = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    memory: Memory = None,
    json: Annotated[bool, typer.Option("--json", help="Each answer as a line of JSON with times.")] = False,
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Answer questions about images with a build; needs neither torch nor transformers."""
    from edge.ask import ask as run
    from edge.ask import read_arguments, typed_questions

    asked = read_arguments(words)
    given = {
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "temperature": temperature or None,
        "do_sample": None if temperature is None else temperature > 0,
    }
    run(
        _opener(build, device, threads, memory, manifest_sha256, trusted_key),
        asked.images,
        typed_questions() if asked.question is None else [asked.question],
        as_json=json,
        overrides={name: value for name, value in given.items() if value is not None},
    )


@app.command(epilog="Example: `genrecal answer runs/demo/build-int8 < questions.jsonl > answers.jsonl`")
def answer(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    memory: Memory = None,
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Answer lines of JSON from standard input with lines of JSON, for programs (docs/subjects.md)."""
    from edge.answer import answer as run

    run(_opener(build, device, threads, memory, manifest_sha256, trusted_key), device=device)


@app.command(epilog="Example: `genrecal serve runs/demo/build-int8 --port 8000`")
def serve(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    memory: Memory = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait; more are told to come again.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that may be asked for.")] = 1024,
    max_body: Annotated[float, typer.Option(min=0.001, help="Largest request in MB.")] = 20.0,
    max_pixels: Annotated[float, typer.Option(min=0.001, help="Largest image in million pixels.")] = 16.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds from request to the answer's end.")
    ] = 120.0,
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Answer over HTTP in the manner of OpenAI's chat completions; images as data URLs."""
    from edge.serve.run import serve as run
    from edge.serve.settings import ServeSettings

    settings = ServeSettings(
        queue=queue,
        max_new_tokens=max_new_tokens,
        max_body_bytes=int(max_body * 1e6),
        max_pixels=int(max_pixels * 1e6),
        timeout_s=timeout,
    )
    opener = _opener(build, device, threads, memory, manifest_sha256, trusted_key)
    run(opener, settings, name=build.resolve().name, host=host, port=port)


@app.command(epilog="Example: `genrecal wheelhouse wheels --python 3.10 --extra edge`")
def wheelhouse(
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    python: Annotated[str, typer.Option(help="The device's Python.")] = "3.10",
    machine: Annotated[str, typer.Option(help="aarch64 or x86_64.")] = "aarch64",
    glibc: Annotated[str, typer.Option(help="The device's C library; JetPack 6: 2.35, 7: 2.39.")] = "2.35",
    extra: Annotated[
        list[str] | None, typer.Option(help="edge, serve or bench; repeatable. Default: edge and serve.")
    ] = None,
    add: Annotated[list[Path] | None, typer.Option(help="A wheel that goes with them; repeatable.")] = None,
) -> None:
    """Collect all wheels that an offline device needs."""
    from edge.wheelhouse import collect, target_of

    collect(
        output, extras=extra or ("edge", "serve"), target=target_of(python, machine, glibc), added=add or ()
    )


@app.command(epilog="Example: `genrecal sign runs/demo/build-int8 --key owner.pem`")
def sign(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM), as OpenSSL makes it.")],
) -> None:
    """Check a build and sign its manifest; devices that trust the key open no other build."""
    from edge.install import sign as run

    run(build, key)


@app.command(epilog="Example: `genrecal install build-int8 /opt/model --trusted-key owner.pub.pem`")
def install(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    slot: Annotated[Path, typer.Argument(help="Where the device keeps its builds; SLOT/current is in use.")],
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Copy a build to a device's slot, check it and switch to it; the one before it is kept."""
    from edge.install import install_command as run

    run(build, slot, manifest_sha256=manifest_sha256, trusted_keys=trusted_key or ())


@app.command(epilog="Example: `genrecal rollback /opt/model`")
def rollback(
    slot: Annotated[Path, typer.Argument(help="The folder of `genrecal install`.")],
    trusted_key: TrustedKeys = None,
) -> None:
    """Switch back to the build before the current one."""
    from edge.install import rollback_command as run

    run(slot, trusted_keys=trusted_key or ())


@app.command(epilog="Example: `genrecal doctor --for edge`")
def doctor(
    purpose: Annotated[str, typer.Option("--for", help="edge: to answer with a build.")] = "edge",
) -> None:
    """What does this machine lack, where does it come from, and which line installs it?"""
    from edge.doctor import doctor as run
    from edge.doctor import edge_findings

    if purpose != "edge":
        raise ConfigError(f"'{purpose}'", where="--for", fix="Known: edge")
    run(edge_findings())


@app.command(
    epilog="Example: `genrecal bench runs/demo/build-int8 --mmb mmbench.tsv --mmmu MMMU/ --mm-vet mm-vet/`"
)
def bench(
    subject: Annotated[
        str,
        typer.Argument(help="A checkpoint folder (RUN/student), a build folder, or an address."),
    ],
    mmb: Annotated[Path | None, typer.Option(help="MMBench's TSV.")] = None,
    mmmu: Annotated[Path | None, typer.Option(help="MMMU's parquet file, or a folder of them.")] = None,
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
    compat: Annotated[str, typer.Option(help="Scoring rule: official, vlmevalkit or lmms.")] = "official",
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
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint that judges MM-Vet.")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's model name.")] = "gpt-4-0613",
    judge_prompt: JudgePrompts = None,
    judge_runs: Annotated[int, typer.Option(min=1, help="Judge runs to average.")] = 1,
    judge_cache: Annotated[
        Path | None, typer.Option(help="File of the judge's replies; default: OUTPUT/judge.jsonl.")
    ] = None,
    judge_replay: Annotated[bool, typer.Option(help="Judge from kept replies alone; make no call.")] = False,
    judge_control: Annotated[
        bool, typer.Option(help="Grade with the hardened prompt and grade constant answers too.")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each set, evenly spaced.")] = None,
    timed: Annotated[int, typer.Option(min=0, help="Queries that speed is measured with; 0: none.")] = 12,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare with this subject or bench folder, question by question.")
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POINTS|NAME=POINTS",
            help="Exit with 0 where it is shown to lose no more than this, 1 where more, 2 where unclear.",
        ),
    ] = None,
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Score a checkpoint, a build or an endpoint on benchmarks, and measure its speed, memory and size."""
    from bench.against import bench_against
    from bench.run import named_sets
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
    mmmu: Annotated[Path | None, typer.Option(help="MMMU's parquet file, or a folder of them.")] = None,
    mm_vet: Annotated[Path | None, typer.Option("--mm-vet", help="MM-Vet's folder or mm-vet.json.")] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Another benchmark and its files; repeatable."),
    ] = None,
    compat: Annotated[str, typer.Option(help="Scoring rule: official, vlmevalkit or lmms.")] = "official",
    official_random: Annotated[
        bool, typer.Option(help="MMMU: draw what cannot be parsed, as the official script does.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Result folder; default: the bench folder.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint that judges MM-Vet.")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's model name.")] = "gpt-4-0613",
    judge_prompt: JudgePrompts = None,
    judge_runs: Annotated[int, typer.Option(min=1, help="Judge runs to average.")] = 1,
    judge_cache: Annotated[
        Path | None, typer.Option(help="File of the judge's replies; default: judge.jsonl in the folder.")
    ] = None,
    judge_replay: Annotated[bool, typer.Option(help="Judge from kept replies alone; make no call.")] = False,
    judge_control: Annotated[
        bool, typer.Option(help="Grade with the hardened prompt and grade constant answers too.")
    ] = True,
) -> None:
    """Score saved answers again, without the model."""
    from bench.rescore import score_command
    from bench.run import named_sets, open_judge

    cache = (output or (answers if answers.is_dir() else answers.parent)) / "judge.jsonl"
    score_command(
        answers,
        sets=named_sets({"mmb": mmb, "mmmu": mmmu, "mmvet": mm_vet}, test or ()),
        output=output,
        judge=open_judge(
            judge_model,
            judge_url,
            judge_cache or cache,
            prompts=judge_prompt or (),
            runs=judge_runs,
            replay_only=judge_replay,
            control=judge_control,
        ),
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


@data_app.command(epilog="Example: `genrecal data get mmmu --output benchmarks/mmmu`")
def get(
    name: Annotated[str, typer.Argument(help="A benchmark's name (docs/scoring.md).")],
    output: Annotated[Path, typer.Option(help="Folder for its files.")],
    revision: Annotated[str | None, typer.Option(help="Commit of the hub's repository.")] = None,
) -> None:
    """Fetch a benchmark's files from where they are published, with their licence and their SHA-256."""
    from bench.get import get_command

    get_command(name, output, revision=revision)


@data_app.command(epilog="Example: `genrecal data check train.json --test mmbench.tsv --test mm-vet/`")
def check(
    training: Annotated[
        list[Path], typer.Argument(help="Training data in any format, or a config (YAML) for its `data`.")
    ],
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Test sets: a benchmark's files, or LLaVA JSON."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where training image paths start; default: beside each file.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="File for the census as JSON.")] = None,
    bad: Annotated[Path | None, typer.Option(help="File for the bad rows, a JSON line each.")] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="File for the ids of samples that are in a test set.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that open images.")] = 1,
) -> None:
    """Count what is in training data, name its bad rows, and look for the test sets in it."""
    from bench.images import named_set, set_questions
    from genrecal.data.census_report import check_data
    from genrecal.data.overlap import TestIndex
    from genrecal.data.source import named_sources

    check_data(
        named_sources(training, images=images),
        tests=TestIndex(
            question for name, path in map(named_set, test) for question in set_questions(path, task=name)
        )
        if test
        else None,
        workers=workers,
        json_file=json,
        bad_file=bad,
        exclude_file=exclude,
    )


if __name__ == "__main__":
    app()
