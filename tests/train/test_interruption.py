"""Chaos: a run killed in the middle of a stage, and one that meets a broken image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from genrecal.core.errors import DataError
from tests.tiny import TinyData
from tests.train.conftest import CARD, DRIVE, TIMEOUT_S, Run, WriteConfig, drive, environment, folder_hash


def lines(folder: Path, stage: str) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count(f'"stage": "{stage}"') if path.is_file() else 0


@pytest.fixture(scope="module")
def resumed(write_config: WriteConfig) -> Run:
    """As `dropout`, but killed in the middle of its second stage, and started again."""
    path = write_config("resumed", dropout=0.1, gradient_checkpointing=True)
    folder = path.with_suffix("")
    process = subprocess.Popen(
        [*DRIVE, str(path)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        # Three steps are done; the only checkpoint so far was written after the second.
        while lines(folder, "distill") < 3:
            assert process.poll() is None and time.monotonic() < deadline, (
                "the run ended before it was killed"
            )
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "stages" / "2-distill").exists() and not (folder / "student").exists()
    assert [step.name for step in (folder / "checkpoints" / "distill").glob("step-*/manifest.json")]
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "distill", "st')  # what a kill in the middle of a write leaves
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(folder=folder, printed=done.stdout)


def test_a_resumed_run_goes_on_where_it_stopped(resumed: Run) -> None:
    assert "recalibrate: finished before, skipped" in resumed.printed
    assert "distill: resuming after step" in resumed.printed
    assert "finetune: resuming" not in resumed.printed


def test_a_resumed_run_equals_the_uninterrupted_one(runs: dict[str, Run], resumed: Run) -> None:
    whole = runs["dropout"]
    timeless = [[{**row, "seconds": None} for row in run.metrics] for run in (whole, resumed)]
    assert timeless[0] == timeless[1]
    students = [folder_hash(run.folder / "student", without=CARD) for run in (whole, resumed)]
    assert students[0] == students[1]
    recalibrators = [run.folder / "stages/2-distill/recalibrator.safetensors" for run in (whole, resumed)]
    assert recalibrators[0].read_bytes() == recalibrators[1].read_bytes()


def test_a_truncated_image_is_one_line(
    write_config: WriteConfig, tiny_data: TinyData, tmp_path: Path
) -> None:
    """Found in the middle of training, by the process that reads ahead: the error crosses two processes."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data.path.parent, data)
    broken = data / "images" / "5.png"
    broken.write_bytes(broken.read_bytes()[:200])
    path = write_config("broken", data=data / "data.json", workers=1)
    done = drive([path], environment())
    assert done.returncode == DataError.exit_code
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said[0].startswith(f"error: {broken}: cannot be decoded") and "truncated" in said[0]
    assert "Traceback" not in done.stderr
    folder = path.with_suffix("")
    assert {path.name for path in folder.iterdir()} <= {"config.yaml", "metrics.jsonl", "checkpoints"}
    assert not list(folder.rglob(".*"))
