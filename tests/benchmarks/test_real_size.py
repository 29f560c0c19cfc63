"""The measurement at real size, run at the smallest: what a GPU would be measured by is the same code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genrecal.core.files import read_json
from tests.train.conftest import ROOT, environment


@pytest.mark.full
def test_every_figure_that_a_cpu_can_give(tmp_path: Path) -> None:
    options = ["--pair", "tiny", "--precision", "fp32", "--samples", "8", "--passes", "1"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.real_size",
        str(tmp_path),
        *options,
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = read_json(tmp_path / "real_size-tiny.json")
    assert 0 < record["figures"]["utilisation"] < 1 and record["figures"]["peak_gib"] is None
    # 8 samples in micro-batches of 4: their tokens are the student's own, no padding among them.
    assert record["measured"]["tokens"] > 8 * 50 and len(record["measured"]["seconds"]) == 1
    assert "not measured on a CPU" in done.stdout
