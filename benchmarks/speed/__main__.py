"""Decoding, prefill and vision at Qwen2-VL-2B's full size on this CPU, beside other engines.

    python -m benchmarks.speed prepare WORK --packages PACKAGES    once; about 25 GB
    python -m benchmarks.speed run WORK --packages PACKAGES        under 15 minutes on 2 cores
    python -m benchmarks.speed table                               the tables of docs/performance.md

Weights are random, sizes are the published ones. PACKAGES holds the engines that the project does not need:

    {install}

    RESULTS/speed.json    every round, medians with their spread, ratios, roofs, machine, versions
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.speed.cases import CASES, INSTALL, NEW_TOKENS, PREFILL_TOKENS, PROMPT_TOKENS, RESULT, ROUNDS
from benchmarks.speed.prepare import prepare
from benchmarks.speed.roofline import reads_of_graph
from benchmarks.speed.rounds import decoder, measure_case, measure_roofs, run_rounds, summarise
from benchmarks.speed.table import goals, machine, ratios, shares, table, versions
from genrecal.core.console import console, errors
from genrecal.core.errors import GenrecalError
from genrecal.core.files import read_json, write_json


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__.format(install=INSTALL),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "one"):
        command = commands.add_parser(name)
        command.add_argument("work", type=Path, help="Folder for models and builds.")
        if name == "one":
            command.add_argument("case", choices=(*CASES, "roofs"), help="In this process; `run` calls it.")
        if name == "run":
            command.add_argument("--rounds", type=int, default=ROUNDS)
            command.add_argument("--result", type=Path, default=RESULT)
            command.add_argument("--only", action="append", choices=CASES, help="These engines; no result.")
        command.add_argument("--packages", type=Path, help="Folder of the other engines' packages.")
        command.add_argument("--threads", type=int, default=os.cpu_count(), help="Of every engine.")
    commands.add_parser("table").add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.command == "table":
        print(table(read_json(options.result)))
    elif options.command == "prepare":
        prepare(options.work, options.packages, threads=options.threads)
    elif options.command == "one" and options.case == "roofs":
        print(json.dumps(measure_roofs(options.work, options.threads)))
    elif options.command == "one":
        print(json.dumps(measure_case(options.case, options.work, options.packages, options.threads)))
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    """Measure, and write the result unless some engines alone were asked for."""
    rounds = run_rounds(
        options.work,
        options.packages,
        rounds=options.rounds,
        threads=options.threads,
        names=options.only or tuple(CASES),
    )
    if options.only:
        return
    figures = summarise(rounds)
    builds = {name: case for name, case in CASES.items() if case.kind == "edge"}
    reads = {name: reads_of_graph(decoder(options.work / case.file)) for name, case in builds.items()}
    result = {
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "prefill_tokens": PREFILL_TOKENS,
        "machine": machine(options.threads),
        "versions": versions(options.packages),
        "roofline": shares(rounds, reads),
        "ratios": ratios(rounds),
        "figures": figures,
        "rounds": rounds,
    }
    result["goals"] = goals(result)
    write_json(options.result, result)
    console.print(table(result), soft_wrap=True)
    for goal, reached in result["goals"].items():
        console.print(f"{'reached' if reached else 'missed '}  {goal}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except GenrecalError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
