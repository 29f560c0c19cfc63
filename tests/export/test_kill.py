"""An export that is killed leaves no build, or the one that was there, or a whole new one."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.build import open_build
from genrecal.core.errors import BuildError

CHILD = """
import sys
from pathlib import Path
from genrecal.export.build import export_run
from genrecal.export.parity import default_queries
print("ready", flush=True)
export_run(Path(sys.argv[1]), Path(sys.argv[2]), precision="fp32", parity_prompts=default_queries()[:1])
"""


def start(student: Path, output: Path) -> subprocess.Popen[str]:
    """An export that has its imports behind it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(student), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def check(output: Path, *, replaced: bool) -> None:
    """There is no build or a whole one; a replaced one is there, if only where the swap was cut short."""
    if output.exists():
        assert open_build(output).precision == "fp32"  # after it has compared every hash
    elif replaced:
        (old,) = output.parent.glob(f".{output.name}.old.*/{output.name}")
        assert open_build(old).precision == "fp32"


@pytest.mark.parametrize("points", [2, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_random_points(student_folder: Path, tmp_path: Path, points: int) -> None:
    older = tmp_path / "older"
    process, begin = start(student_folder, older), time.monotonic()
    assert process.wait() == 0
    duration_s = time.monotonic() - begin
    generator = random.Random(points)
    for point in range(points):
        output, replaced = tmp_path / f"build-{point}", bool(point % 2)
        if replaced:
            shutil.copytree(older, output)
        process = start(student_folder, output)
        # Evenly over the export, up to beyond its end.
        time.sleep(duration_s * 1.1 * (point + generator.random()) / points)
        process.send_signal(signal.SIGKILL)
        process.wait()
        check(output, replaced=replaced)


def test_a_part_of_a_build_is_no_build(student_folder: Path, tmp_path: Path) -> None:
    """What a kill leaves behind while graphs are written has no manifest, and is not opened."""
    process = start(student_folder, tmp_path / "build")
    while not (parts := list(tmp_path.glob(".build.*/onnx/*.onnx"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "build").exists()
    with pytest.raises(BuildError, match=r"has no manifest\.json"):
        open_build(parts[0].parents[1])
