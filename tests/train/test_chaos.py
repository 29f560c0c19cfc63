"""Nothing spoils a run: kill -9 at any point, a full disk at any write; the same command goes on.

The ranks are forks of one process (zygote.py). A point is either a time, or one of the rank's own file
operations: the signal or the full disk comes just before it, inside saves and stage changes as well.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from genrecal.core.errors import Requeue, TrainError
from genrecal.core.manifest import NAME, verify_manifest
from tests.train.conftest import CARD, TIMEOUT_S, WriteConfig, folder_hash
from tests.train.rank_forks import Rank, Zygote

SAVE_EVERY = 2  # as `write_config` has it
KILLS = 20

# Where a kill hurts most, in the order of a run.
AIMED = {
    "the first save, before its manifest": r"os.rename .*/checkpoints/recalibrate/step-0*2/\.manifest",
    "exactly between two stages": r"shutil.rmtree .*/checkpoints/recalibrate$",
    "the second save, its shards unwritten": r"os.chmod .*/checkpoints/distill/step-0*4/shard",
    "a stage's folder, before it is renamed": r"os.rename .*/stages/\.3-finetune",
    "the student, before it is renamed": r"os.rename .*/\.student\.",
}


def mount_namespace() -> tuple[str, ...] | None:
    """A command that runs another where it may mount; None where this machine allows it to nobody."""
    for command in (("unshare", "--user", "--map-root-user", "--mount"), ("unshare", "--mount")):
        probe = [*command, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
        try:
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            return None
    return None


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("logs"), mount_namespace() or ()) as running:
        yield running


@pytest.fixture(scope="module")
def reference(zygote: Zygote, write_config: WriteConfig) -> Path:
    """The folder of a run that nothing befell."""
    config = write_config("unspoiled")
    code, rank = zygote.run(config)
    assert code == 0, rank.printed[-3000:]
    return config.with_suffix("")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def final(folder: Path) -> dict[str, Any]:
    """All that a finished run has learned and said; the student's card names the run."""
    verify_manifest(folder, kind="run")
    return {
        "student": folder_hash(folder / "student", without=CARD),
        "stages": {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted((folder / "stages").rglob("*.safetensors"))
        },
        "metrics": [{**row, "seconds": None} for row in rows(folder)],
    }


def assert_same(folder: Path, reference: Path) -> None:
    mine, whole = final(folder), final(reference)
    assert mine["metrics"] == whole["metrics"]  # each step once
    assert mine["stages"].keys() == whole["stages"].keys()
    for name, data in whole["stages"].items():
        assert mine["stages"][name] == data, name
    assert mine["student"] == whole["student"]
    assert not [path for path in folder.rglob(".*")] and not (folder / "checkpoints").exists()


def assert_little_is_repeated(before: list[dict[str, Any]], rank: Rank, folder: Path) -> None:
    """The stage that was killed goes on no more than one interval behind its last step."""
    if not before or f"{before[-1]['stage']}: finished before" in rank.printed:
        return
    stage, done = before[-1]["stage"], before[-1]["step"] + 1
    resumed = re.search(rf"{stage}: resuming after step (\d+)", rank.printed)
    # A rank that was killed before it trained has neither said so nor changed the stage's lines.
    begun = f"{stage}: step " in rank.printed or sum(row["stage"] == stage for row in rows(folder)) != done
    if resumed or begun:
        assert done - (int(resumed[1]) if resumed else 0) <= SAVE_EVERY


def kill_and_go_on(zygote: Zygote, config: Path, points: Iterator[dict[str, Any] | float]) -> int:
    """Run `config` to its end, killed at each of `points` on the way; returns how many kills it met."""
    folder, kills = config.with_suffix(""), 0
    before: list[dict[str, Any]] = []
    while True:
        point = next(points, None)
        rank = zygote.start(config, point if isinstance(point, dict) else None)
        if isinstance(point, float):
            time.sleep(point)
            with suppress(ProcessLookupError):  # it has finished
                os.kill(rank.pid, signal.SIGKILL)
        code = rank.wait()
        assert code in (0, -signal.SIGKILL), rank.printed[-3000:]
        assert_little_is_repeated(before, rank, folder)
        if code == 0:
            return kills
        kills, before = kills + 1, rows(folder)


def test_killed_where_it_hurts_most(zygote: Zygote, reference: Path, write_config: WriteConfig) -> None:
    config = write_config("aimed")
    points = iter([{"action": "kill", "match": pattern} for pattern in AIMED.values()])
    assert kill_and_go_on(zygote, config, points) == len(AIMED)
    assert_same(config.with_suffix(""), reference)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_points(zygote: Zygote, reference: Path, write_config: WriteConfig) -> None:
    draw = random.Random(20)
    config = write_config("random")
    started = time.monotonic()
    code, rank = zygote.run(config)
    seconds, operations = time.monotonic() - started, rank.operations
    assert code == 0 and operations > 100
    kills = 0
    while kills < KILLS:
        shutil.rmtree(config.with_suffix(""))
        left = KILLS - kills
        points: list[dict[str, Any] | float] = [
            {"action": "kill", "count": draw.randint(1, operations // 3)}
            if draw.random() < 0.5
            else draw.uniform(0.0, 0.7 * seconds)
            for _ in range(left)
        ]
        kills += kill_and_go_on(zygote, config, iter(points))
        assert_same(config.with_suffix(""), reference)


def test_a_signal_publishes_a_checkpoint(zygote: Zygote, reference: Path, write_config: WriteConfig) -> None:
    """To the rank and to the process that reads ahead for it, as schedulers send it.

    Before it, the clock alone has checkpoints written, after every step.
    """
    saving = {"save_every": 1000, "save_minutes": 1e-6}
    config = write_config("signalled", workers=1, changes={"engine": saving})
    folder = config.with_suffix("")
    rank = zygote.start(config)
    deadline = time.monotonic() + TIMEOUT_S
    while len([row for row in rows(folder) if row["stage"] == "distill"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(rank.pid)], capture_output=True, text=True).stdout.split()
    assert children
    for pid in (*map(int, children), rank.pid):
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGTERM)
    assert rank.wait() == Requeue.exit_code, rank.printed[-3000:]
    done = len([row for row in rows(folder) if row["stage"] == "distill"])
    said = [line for line in rank.printed.splitlines() if "ended by" in line]
    assert len(said) == 1 and f"distill: ended by SIGUSR1 after step {done} of 8" in said[0]
    assert not [line for line in rank.printed.splitlines() if line.startswith(("error:", "Traceback"))]
    kept = [path.parent.name for path in sorted(folder.glob(f"checkpoints/distill/*/{NAME}"))]
    assert kept == [f"step-{done - 1:06d}", f"step-{done:06d}"]
    code, again = zygote.run(config)
    assert code == 0 and f"distill: resuming after step {done} of 8" in again.printed
    assert_same(folder, reference)


# Writes that meet a full disk, in the order of a run: just before which operation it fills up; what is left.
FULL: dict[str, dict[str, Any]] = {
    "the run's config": {"match": r"open .*/\.config\.yaml", "at": "config.yaml"},
    "what data it has": {"match": r"open .*/full/\.data\.json", "at": "data.json"},
    "the first shard": {"match": r"os.mkdir .*/recalibrate/step-0*2$", "at": "recalibrate/step-000002"},
    "a stage's weights": {"match": r"os.mkdir .*/stages/\.1-recalibrate", "at": "stages/1-recalibrate"},
    "features": {
        "match": r"os.mkdir .*/stages/\.1-recalibrate",
        "leave": "recalibrator",
        "at": "1-recalibrate",
    },
    "a checkpoint's manifest": {"match": r"open .*/distill/step-0*2/\.manifest", "at": "distill/step-000002"},
    "metrics": {"match": r"open .*/metrics\.jsonl$", "size": 3300, "at": "metrics.jsonl"},
    "a merged student": {"match": r"os.mkdir .*/stages/\.2-distill", "at": "stages/2-distill"},
    "the last stage's student": {"match": r"os.mkdir .*/stages/\.3-finetune", "at": "stages/3-finetune"},
    "the student": {"match": r"os.mkdir .*/\.student\.", "at": "student"},
    "the run's manifest": {"match": r"open .*/full/\.manifest", "at": "full"},
}


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_full_disk_at_any_write(
    zygote: Zygote, reference: Path, write_config: WriteConfig, tmp_path: Path
) -> None:
    if not zygote.under:
        pytest.skip("nobody may mount a small disk here (unshare --mount), so none can be filled")
    disk = tmp_path / "disk"
    disk.mkdir()
    zygote.shell(f"mount -t tmpfs -o size=64m tmpfs {disk}")
    config = write_config("full", changes={"output": str(disk / "full")})
    filler = disk / "filler"
    recalibrator = (reference / "stages/1-recalibrate/recalibrator.safetensors").stat().st_size
    for name, point in FULL.items():
        leave = 4096 * (recalibrator // 4096 + 2) if point.get("leave") else 0
        at = {"action": "fill", "filler": str(filler), "leave": leave, "match": point["match"]}
        code, rank = zygote.run(config, at | {"size": point.get("size", 0)})
        printed = rank.printed
        assert code == TrainError.exit_code, (name, printed[-3000:])
        said = [line for line in printed.splitlines() if line.startswith("error:")]
        assert len(said) == 1 and point["at"] in said[0] and "No space left" in said[0], (name, said)
        assert "Traceback" not in printed
        zygote.shell(f"test -s {filler} && rm {filler}")
    code, rank = zygote.run(config)
    assert code == 0, rank.printed[-3000:]
    copy = tmp_path / "full"
    zygote.shell(f"cp -r {disk}/full {copy}")  # this process does not see the disk
    assert_same(copy, reference)
