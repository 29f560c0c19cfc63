"""A run that is tracked and keeps its points trains as one that does neither, and says how good it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError
from genrecal.core.manifest import verify_manifest
from genrecal.train.launch import distill
from genrecal.train.run import check_run
from genrecal.train.settings import RunConfig
from tests.bench.tiny_sets import mmb_row, write_mmb
from tests.train.conftest import CARD, Run, WriteConfig, as_one_rank, drive, folder_hash


def with_settings(path: Path, **settings: object) -> Path:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(content | settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def watched(write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a finished run with points and a tracker."""
    rows = [mmb_row(number, ["red", "green"], "A") for number in range(1, 5)]
    sets = {"mmb": str(write_mmb(tmp_path_factory.mktemp("sets") / "mmb.tsv", rows))}
    path = with_settings(
        write_config("watched"), evaluate={"every": 0.5, "sets": sets, "limit": 2}, track=["tensorboard"]
    )
    done = drive([path], as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    return path


def test_watching_changes_nothing(watched: Path, runs: dict[str, Run]) -> None:
    run, plain = Run(folder=watched.with_suffix(""), printed=""), runs["plain"]
    assert [row["terms"] for row in run.metrics] == [row["terms"] for row in plain.metrics]
    assert folder_hash(run.folder / "student", without=CARD) == folder_hash(
        plain.folder / "student", without=CARD
    )


def test_the_points_and_the_figures_are_there(watched: Path) -> None:
    folder = watched.with_suffix("")
    verify_manifest(folder, kind="run")
    records = json.loads((folder / "points.json").read_text(encoding="utf-8"))
    places = [(one["stage"], one["percent"], one["unchanged"]) for one in records]
    assert places == [
        ("recalibrate", 50, True),
        ("recalibrate", 100, True),
        ("distill", 50, False),
        ("distill", 100, False),
        ("finetune", 50, False),
        ("finetune", 100, False),
    ]
    assert all(one["questions"] == {"mmb": 2} for one in records)
    assert not list((folder / "points").glob("*/snapshot"))
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    events.Reload()
    steps = [
        event.step
        for stage in ("recalibrate", "distill", "finetune")
        for event in events.Scalars(f"{stage}/loss")
    ]
    assert steps == list(range(len(Run(folder=folder, printed="").metrics)))


def test_a_resumed_run_may_be_watched_otherwise(watched: Path, tmp_path: Path) -> None:
    config = load_config(watched, RunConfig)
    check_run(config.model_copy(update={"track": (), "evaluate": None, "track_project": "other"}))
    with pytest.raises(ConfigError, match="other settings \\(seed\\)"):
        check_run(config.model_copy(update={"seed": 5}))
    gone = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"sets": {"mmb": tmp_path / "gone.tsv"}})}
    )
    with pytest.raises(ConfigError, match=r"gone\.tsv: no such test set"):
        distill(gone)
