"""Trackers write what they are given, go on after a resume, and cannot stop or slow a run."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from genrecal.core.files import write_json
from genrecal.core.manifest import write_manifest
from genrecal.train import track
from genrecal.train.track import Feed, Trackers, flatten, open_trackers, steps_before

ROOT = Path(__file__).parents[2]
CONFIG = {
    "method": "genrecal",
    "lora": {"rank": 4},
    "stages": {},
    "seed": 0,
    "remote_code": {"models/InternVL (1)": {"revision": "a" * 40}},
}


def record(stage: str, step: int, kl: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "step": step,
        "steps": 4,
        "loss": kl + 1,
        "grad_norm": None,
        # A second teacher's terms bear its place.
        "terms": {"kl": kl, "kl@1": kl + 2},
        "reading": {"kl_rise_later": float("nan")},
    }


def log(run: Path, name: str, steps: range, *, resume: bool, base: float = 0.0) -> Trackers:
    """What a run does: open, a record a step, close."""
    run.mkdir(exist_ok=True)
    trackers = open_trackers([name], run_folder=run, project="tiny", config=CONFIG, resume=resume)
    for step in steps:
        trackers.log(record("distill", step, base + step / 4), step)
    trackers.close()
    return trackers


def test_names_are_paths_and_only_finite_numbers_are_logged() -> None:
    assert flatten(record("distill", 3, 0.25)) == {
        "distill/loss": 1.25,
        "distill/terms/kl": 0.25,
        "distill/terms/kl@1": 2.25,
    }
    assert flatten({"loss": 2, "ok": True, "note": "x"}) == {"loss": 2.0}


def test_steps_are_cumulated_over_stages(tmp_path: Path) -> None:
    for number, steps in ((1, 30), (2, 12), (10, 5)):
        folder = tmp_path / f"{number}-stage"
        folder.mkdir()
        write_manifest(folder, kind="stage", steps=steps)
    assert [steps_before(tmp_path, number) for number in (1, 2, 3, 11)] == [0, 30, 42, 47]


def test_tensorboard_holds_each_figure_once_also_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    log(run, "tensorboard", range(4), resume=False)
    # The run was killed after step 3 and had its last checkpoint after step 1.
    log(run, "tensorboard", range(2, 6), resume=True)
    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"distill/loss", "distill/terms/kl", "distill/terms/kl@1"}
    kl = events.Scalars("distill/terms/kl")
    assert [(event.step, event.value) for event in kl] == [(step, step / 4) for step in range(6)]


def two_starts(run: Path, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run and its resumption, in a process of its own: W&B starts a service that lives as long as that,
    and trackio reads its variables when it is imported.
    """
    program = (
        "from pathlib import Path\n"
        "from tests.train.test_track import log\n"
        f"run = Path({str(run)!r})\n"
        f"log(run, {name!r}, range(3), resume=False)\n"
        f"log(run, {name!r}, range(3, 5), resume=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    done = two_starts(tmp_path / "run", "wandb", WANDB_MODE="offline")
    if "warning: tracker wandb failed" in done.stderr:
        pytest.skip(f"wandb cannot run here: {done.stderr.strip()[-300:]}")
    assert "warning" not in done.stderr
    files = sorted((tmp_path / "run" / "trackers" / "wandb").rglob("run-*.wandb"))
    identity = json.loads((tmp_path / "run" / "trackers" / "wandb.json").read_text())["run"]
    assert [path.name for path in files] == [f"run-{identity}.wandb"] * 2
    # Its records are protobuf messages that keep names and values as text behind its length; without that
    # byte a time such as 10.75 would be found, too.
    first, second = (path.read_bytes() for path in files)
    assert b"distill/terms/kl" in first and b"\x040.25" in first and b"\x040.75" not in first
    assert b"\x040.75" in second and b"lora" in first and b"distill/terms/kl@1" in first


def test_mlflow_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tmp_path / "run"
    log(run, "mlflow", range(4), resume=False)
    log(run, "mlflow", range(2, 6), resume=True, base=9.0)  # what is there already stays
    client = MlflowClient(tracking_uri=(run / "trackers" / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("tiny")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["lora.rank"] == "4"
    # MLflow refuses names with any of @, ( and ).
    assert found.data.params["remote_code.models/InternVL _1_.revision"] == "a" * 40
    assert set(found.data.metrics) == {"distill/loss", "distill/terms/kl", "distill/terms/kl_1"}
    history = client.get_metric_history(found.info.run_id, "distill/terms/kl")
    values = [(one.step, one.value) for one in history]
    assert values == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 10.0), (5, 10.25)]


def test_trackio_keeps_a_run_over_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed: it wants a newer huggingface_hub")
    done = two_starts(tmp_path / "run", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert "warning" not in done.stderr
    (store,) = (tmp_path / "trackio").glob("tiny*.db")
    with sqlite3.connect(store) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    kl = [(step, json.loads(metrics)["distill/terms/kl"]) for _, step, metrics in rows]
    assert kl == [(step, step / 4) for step in range(5)]
    assert len({name for name, *_ in rows}) == 1


class Recording:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.got.append(step)

    def close(self) -> None:
        self.closed = True


class Raising(Recording):
    def log(self, values: dict[str, float], step: int) -> None:
        if step == 2:
            raise OSError("no space left on device")
        super().log(values, step)


class Hanging(Recording):
    """Takes two records and then waits for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = threading.Event()

    def log(self, values: dict[str, float], step: int) -> None:
        super().log(values, step)
        if step == 1:
            self.hangs.set()
            threading.Event().wait()


def warnings_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: ")]


def test_a_tracker_that_raises_is_dropped_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Recording(), Raising()
    feeds = [Feed("good", lambda: good), Feed("bad", lambda: bad)]
    trackers = Trackers(feeds)
    for step in range(50):
        trackers.log(record("distill", step, 0.5), step)
    trackers.close()
    assert good.got == list(range(50)) and good.closed
    assert bad.got == [0, 1] and not bad.closed and not feeds[1].alive
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning == "warning: tracker bad failed and is dropped (OSError: no space left on device)"


def test_a_tracker_that_cannot_start_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    def start() -> Recording:
        raise SystemExit("no network")

    feed = Feed("offline", start)
    feed.wait_for_start(time.monotonic() + 10)
    trackers = Trackers([feed])
    trackers.log(record("distill", 0, 0.5), 0)
    trackers.close()
    assert not feed.alive and feed.dropped == 1
    (warning,) = warnings_in(capsys.readouterr().err)
    assert "tracker offline failed and is dropped (SystemExit: no network)" in warning


def test_a_tracker_that_hangs_never_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Hanging()
    feed = Feed("stuck", lambda: sink, waiting=5)
    trackers = Trackers([feed])
    for step in range(2):
        trackers.log(record("distill", step, 0.5), step)
    assert sink.hangs.wait(10)
    started = time.monotonic()
    for step in range(2, 100):
        trackers.log(record("distill", step, 0.5), step)
    assert time.monotonic() - started < 1
    assert feed.dropped == 98 - 5
    trackers.close(timeout_s=0.2)
    assert time.monotonic() - started < 2
    (warning,) = warnings_in(capsys.readouterr().err)
    # The one that it hangs in, five that wait and those that found no place.
    assert warning == f"warning: tracker stuck did not finish in time; {1 + 5 + 93} records are not in it"
    assert sink.got == [0, 1]


def test_a_tracker_that_hangs_for_long_is_dropped_while_training_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = Hanging()
    feed = Feed("stuck", lambda: sink, stall_s=0.05)
    for step in range(2):
        feed.put({"loss": 1.0}, step)
    assert sink.hangs.wait(10)
    time.sleep(0.1)
    feed.put({"loss": 1.0}, 2)
    assert not feed.alive
    assert "has taken nothing for 0 s and is dropped" in warnings_in(capsys.readouterr().err)[0]
    feed.close(time.monotonic() + 10)
    assert not capsys.readouterr().err


def test_waiting_for_the_next_step_is_no_hanging() -> None:
    sink = Recording()
    feed = Feed("quick", lambda: sink, stall_s=0.05)
    feed.wait_for_start(time.monotonic() + 10)
    for step in range(3):
        feed.put({"loss": 1.0}, step)
        time.sleep(0.15)  # a step of training that takes longer than the limit
    feed.close(time.monotonic() + 10)
    assert feed.alive and sink.got == [0, 1, 2] and sink.closed


def test_a_missing_package_is_named_before_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        track.importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name)
    )
    opened = open_trackers(["wandb"], run_folder=tmp_path, project="tiny", config=CONFIG, resume=False)
    assert opened.feeds == ()
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning == "warning: tracker wandb is not installed, so it gets nothing; pip install wandb"
    opened.log(record("distill", 0, 0.5), 0)
    opened.close()


def test_a_folder_of_the_same_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B leaves a folder `wandb` where it was run without genrecal."""
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    opened = open_trackers(["trackio"], run_folder=tmp_path, project="tiny", config=CONFIG, resume=False)
    assert opened.feeds == ()
    assert "trackio is not installed" in capsys.readouterr().err


def test_a_damaged_identity_is_said_and_does_not_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    write_json(tmp_path / "trackers" / "mlflow.json", ["not", "a", "run"])
    log(tmp_path, "mlflow", range(2), resume=True)
    (warning,) = warnings_in(capsys.readouterr().err)
    assert "tracker mlflow failed and is dropped (TypeError" in warning
