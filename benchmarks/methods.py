"""Train every method on equal terms and print the tables.

    python -m benchmarks.methods run --suite main --seeds 5 --workers 2
    python -m benchmarks.methods table

Cells that are finished are left alone, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genrecal.core.console import console, errors
from genrecal.core.errors import GenrecalError

if TYPE_CHECKING:
    from benchmarks.answers import Examination
    from benchmarks.cells import Cell
    from genrecal.data.pair import SharedTokens

RESULTS = Path(__file__).parent / "results" / "methods"
OUTPUT = Path("runs/methods")
# Cells that a worker runs before a fresh one takes its place: libraries keep a little memory for each run.
CELLS_PER_WORKER = 20

app = typer.Typer(add_completion=False, no_args_is_help=True)

Plan = Annotated[Path | None, typer.Option("--plan", help="Another methods.yaml.")]
Output = Annotated[Path, typer.Option(help="Models, data and running cells.")]
Results = Annotated[Path, typer.Option(help="Finished cells, one JSON each.")]


@app.command()
def run(
    suite: Annotated[list[str] | None, typer.Option(help="Default: all; in the order given.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 2,
    cell: Annotated[str | None, typer.Option(help="One cell alone, setting/variant, of --seed.")] = None,
    seed: int = 0,
    output: Output = OUTPUT,
    results: Results = RESULTS,
    plan: Plan = None,
) -> None:
    """Make the models, train and score the cells, count the operations: whatever of it is missing."""
    from benchmarks.cells import Cell, cells_of, is_done
    from benchmarks.pairs import model_folder
    from benchmarks.settings import DEFAULTS, load_plan

    path = plan or DEFAULTS
    chosen = load_plan(path)
    if cell is not None:
        setting, _, variant = cell.partition("/")
        wanted = [Cell(seed=seed, setting=setting, variant=variant)]
    else:
        # Suite by suite: the first one is whole before the second begins.
        unique = dict.fromkeys(
            one for name in suite or chosen.suites for one in cells_of(chosen, [name], seeds)
        )
        wanted = list(unique)
    todo = [one for one in wanted if not is_done(chosen, one, results)]
    missing = {
        name
        for one in todo
        for name in (chosen.settings[one.setting].teacher, chosen.settings[one.setting].student)
        if not model_folder(chosen, output, name).is_dir()
    }
    console.print(f"{len(todo)} of {len(wanted)} cells to run, {workers} workers")
    started, done, failed = time.monotonic(), 0, 0
    with _pool(workers) as pool:
        # One after the other: the workers read what is drawn and made here.
        for one in dict.fromkeys((chosen.settings[one.setting].data, one.seed) for one in todo):
            pool.submit(_draw, path, one, output).result()
        for name in sorted(missing):
            pool.submit(_make, path, name, output).result()
    # New workers from time to time, as a worker keeps what its cells have read.
    for first in range(0, len(todo), CELLS_PER_WORKER * workers):
        with _pool(workers) as pool:
            some = todo[first : first + CELLS_PER_WORKER * workers]
            futures = {pool.submit(_work, path, one, output, results): one for one in some}
            for future in as_completed(futures):
                one, line = futures[future], future.result()
                done += 1
                failed += line.startswith("FAILED")
                left = (time.monotonic() - started) / done * (len(todo) - done)
                console.print(
                    f"{done}/{len(todo)} {one.row} seed {one.seed}: {line}; ETA {left / 60:.0f} min"
                )
    with _pool(1) as pool:
        pool.submit(_count, path, tuple(dict.fromkeys(one.row for one in wanted)), output, results).result()
    if failed:
        raise typer.Exit(1)


@app.command()
def table(
    suite: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    results: Results = RESULTS,
    plan: Plan = None,
    document: Annotated[
        Path | None, typer.Option(help="Put the tables between the markers of a file.")
    ] = None,
) -> None:
    """Print the tables as Markdown."""
    from benchmarks.settings import DEFAULTS, load_plan
    from benchmarks.table import all_tables, put_between_markers

    tables = all_tables(load_plan(plan or DEFAULTS), results)
    if document is not None:
        put_between_markers(document, tables)
        return
    for name in suite or tables:
        typer.echo(f"{name}\n\n{tables[name]}")


@app.command()
def gradients(
    row: Annotated[list[str], typer.Option(help="setting/variant, with a Recalibrator.")],
    output: Output = OUTPUT,
    results: Results = RESULTS,
    plan: Plan = None,
) -> None:
    """Measure where the gradient goes when stage 2 begins."""
    _start()
    from benchmarks.gradients import measure_rows
    from benchmarks.settings import DEFAULTS, load_plan

    measure_rows(load_plan(plan or DEFAULTS), row, output, results)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)


def _start() -> None:
    """A worker trains as the only rank of its run, on one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from benchmarks.pairs import as_one_rank

    torch.set_num_threads(1)
    as_one_rank()


def _draw(plan: Path, data: tuple[str, int], output: Path) -> None:
    from benchmarks.pairs import distill_set, draw_test_sets
    from benchmarks.settings import load_plan

    chosen = load_plan(plan)
    draw_test_sets(chosen, output)
    distill_set(chosen, output, *data)


def _make(plan: Path, name: str, output: Path) -> None:
    from benchmarks.pairs import make_model
    from benchmarks.settings import load_plan

    make_model(load_plan(plan), output, name)


def _count(plan: Path, rows: tuple[str, ...], output: Path, results: Path) -> None:
    from benchmarks.flops import count_rows
    from benchmarks.settings import load_plan

    count_rows(load_plan(plan), rows, output, results)


@cache
def _examination(output: Path) -> Examination:
    """The test sets, encoded once in a worker's life."""
    from benchmarks.answers import Examination
    from benchmarks.pairs import held_out, test_sets

    return Examination(test_sets(output), held_out(output))


@lru_cache(maxsize=1)
def _tokens(student: str, teacher: str, data: str, seed: int) -> SharedTokens:
    """Tokenized samples, shared by the cells that follow each other with the same models and data."""
    return {}


def _work(plan: Path, cell: Cell, output: Path, results: Path) -> str:
    """Run a cell in a worker and say in one line how it went."""
    from benchmarks.cells import is_done, run_cell
    from benchmarks.settings import load_plan

    chosen = load_plan(plan)
    try:
        if is_done(chosen, cell, results):  # another command's worker was here meanwhile
            return "there already"
        setting = chosen.settings[cell.setting]
        shared = _tokens(setting.student, setting.teacher, setting.data, cell.seed)
        record = run_cell(chosen, cell, output, results, _examination(output), shared)
    except Exception as error:  # one cell's failure must not end the others'
        if not isinstance(error, GenrecalError):
            traceback.print_exc()
        return f"FAILED: {' '.join(str(error).split())[:300]}"
    scores = " ".join(f"{name} {score:.1%}" for name, score in record["scores"].items())
    return f"{scores} in {record['seconds']['cell']:.0f} s"


def main() -> None:
    try:
        app()
    except GenrecalError as error:
        errors.print(f"error: {error}", soft_wrap=True, markup=False)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
