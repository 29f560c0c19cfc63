"""Commands that run a build; they need neither torch nor transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from genrecal.commands.options import Memory, Pin, TrustedKeys
from genrecal.core.errors import ConfigError

app = typer.Typer()

Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")]


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
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Draw from the likeliest tokens that hold this share; where it samples."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, where the build samples.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that the answer ends before; repeatable. In place of the build's own."),
    ] = None,
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
        "top_p": top_p,
        "stop_strings": tuple(stop) if stop else None,
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
    watch: Annotated[bool, typer.Option("--watch", help="Measure what the board takes, too.")] = False,
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Answer lines of JSON from standard input with lines of JSON, for programs (docs/subjects.md)."""
    from edge.answer import answer as run

    opener = _opener(build, device, threads, memory, manifest_sha256, trusted_key)
    run(opener, device=device, watch=watch)


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
