"""A run killed in the middle of a stage, one that goes on with other ranks, one with a broken image."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError, DataError, Requeue
from genrecal.train.run import check_run
from genrecal.train.settings import RunConfig
from tests.tiny import TinyData
from tests.train.conftest import (
    CARD,
    DRIVE,
    TIMEOUT_S,
    Run,
    WriteConfig,
    assert_same_steps,
    drive,
    environment,
    folder_hash,
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What two ranks did until the signal came, and the run that one rank finished."""

    code: int
    printed: str
    steps: int  # of the second stage
    run: Run
    config: Path


@pytest.fixture(scope="module")
def moved(write_config: WriteConfig) -> Moved:
    """As `plain`, but SIGTERM ends its two ranks in the second stage; one rank does the rest."""
    path = write_config("moved", ranks=2, accumulation=1)
    folder = path.with_suffix("")
    process = subprocess.Popen(
        [*DRIVE, str(path)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while lines(folder, "distill") < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    steps = lines(folder, "distill")
    config = yaml.safe_load(path.read_text())
    config["engine"] |= {"ranks": 1, "zero_stage": 2}
    path.write_text(yaml.safe_dump(config))
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return Moved(
        code=process.returncode,
        printed=printed,
        steps=steps,
        run=Run(folder=folder, printed=done.stdout),
        config=path,
    )


def test_a_signal_ends_all_ranks_with_a_checkpoint(moved: Moved, tiny_data: TinyData) -> None:
    assert moved.code == Requeue.exit_code
    said = [line for line in moved.printed.splitlines() if "ended by SIGTERM" in line]
    assert len(said) == 1 and f"distill: ended by SIGTERM after step {moved.steps} of 8" in said[0]
    assert f"distill: resuming after step {moved.steps} of 8" in moved.run.printed
    assert json.loads((moved.run.folder / "data.json").read_text())["samples"] == tiny_data.samples


def test_one_rank_goes_on_as_two_would(runs: dict[str, Run], moved: Moved) -> None:
    assert "on 1 ranks" in moved.run.printed
    assert len(moved.run.metrics) == len(runs["plain"].metrics) == 4 + 8 + 3
    assert_same_steps(runs["plain"], moved.run)  # tokens of every step included: the same samples
    started = load_config(moved.run.folder / "config.yaml", RunConfig)
    assert started.engine.ranks == 2 and started.stage("distill").accumulation == 1


def test_a_number_of_ranks_that_does_not_fit_is_refused(moved: Moved) -> None:
    with pytest.raises(ConfigError, match=r"engine.ranks: .*started on 2 ranks.*Possible are 1, 2$"):
        check_run(load_config(moved.config, RunConfig, ["engine.ranks=3"]))


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
    left = {path.name for path in folder.iterdir()}
    assert left <= {"config.yaml", "data.json", "metrics.jsonl", "preflight.json", "checkpoints"}
    assert not list(folder.rglob(".*"))
