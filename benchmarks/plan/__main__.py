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
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.plan.cases import CASES, PAIRS, RESULTS, write_inputs
from benchmarks.plan.measure import run_case
from benchmarks.plan.predict import table
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions


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
