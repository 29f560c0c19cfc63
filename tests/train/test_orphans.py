"""A process whose parent is killed: while it works, and before it has got so far as to look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.train.conftest import environment

PROGRAM = """
import multiprocessing, sys, time
from genrecal.train.orphans import die_with_parent

def work(wait_s):
    print("up", flush=True)
    time.sleep(wait_s)
    die_with_parent()
    print("looked", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=(float(sys.argv[1]),)).start()
    time.sleep(600)
"""


@pytest.mark.parametrize(("wait_s", "last"), [(0, "looked"), (2, "up")])
def test_it_ends_with_its_parent(tmp_path: Path, wait_s: float, last: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(wait_s)]
    parent = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    said = [parent.stdout.readline().strip()]
    while said[-1] != last:
        said.append(parent.stdout.readline().strip())
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()  # which waits for all that hold its output
    assert children and psutil.wait_procs(children, timeout=10)[1] == []
