"""Commands that look after training and test data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: `genrecal data get mmmu --output benchmarks/mmmu`")
def get(
    name: Annotated[str, typer.Argument(help="A benchmark's name (docs/scoring.md).")],
    output: Annotated[Path, typer.Option(help="Folder for its files.")],
    revision: Annotated[
        str | None, typer.Option(help="Commit or branch of the hub's repository; default: pinned.")
    ] = None,
) -> None:
    """Fetch a benchmark's files from where they are published, with their licence and their SHA-256."""
    from bench.get import get_command

    get_command(name, output, revision=revision)


@app.command(epilog="Example: `genrecal data check train.json --test mmbench.tsv --test mm-vet/`")
def check(
    training: Annotated[
        list[Path], typer.Argument(help="Training data in any format, or a config (YAML) for its `data`.")
    ],
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Test sets: a benchmark's files, or conversations as JSON."),
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
    from genrecal.data.asked import asked_rows
    from genrecal.data.census_report import check_data
    from genrecal.data.overlap import TestIndex
    from genrecal.data.source import named_sources

    check_data(
        named_sources(training, images=images),
        tests=TestIndex(
            question
            for name, path in map(named_set, test)
            for question in set_questions(path, task=name, conversations=asked_rows)
        )
        if test
        else None,
        workers=workers,
        json_file=json,
        bad_file=bad,
        exclude_file=exclude,
    )
