"""Builds on a device: installed, switched, rolled back, and killed at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.build import open_build
from edge.install import install, read_slot, rollback
from genrecal.core.errors import BuildError
from genrecal.core.files import sha256_file


def variant(build: Path, folder: Path, name: str) -> Path:
    """The same build with another manifest: another build to a device."""
    copy = shutil.copytree(build, folder / name)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"provenance": {"student": name}}))
    return copy


def student_of(slot: Path) -> str:
    return str(open_build(slot / "current").manifest["provenance"].get("student"))


@pytest.fixture
def three(build_folder: Path, tmp_path: Path) -> list[Path]:
    return [variant(build_folder, tmp_path, name) for name in ("first", "second", "third")]


def test_install_and_roll_back(three: list[Path], tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    digests = [sha256_file(build / "manifest.json") for build in three]
    assert read_slot(slot).current is None
    found = install(three[0], slot)
    assert (found.current, found.previous) == (digests[0], None)
    found = install(three[1], slot)
    assert (found.current, found.previous) == (digests[1], digests[0])
    assert student_of(slot) == "second"
    found = rollback(slot)
    assert (found.current, found.previous) == (digests[0], None) and student_of(slot) == "first"
    install(three[1], slot)
    found = install(three[2], slot)
    assert (found.current, found.previous) == (digests[2], digests[1])
    assert sorted(path.name for path in (slot / "builds").iterdir()) == sorted(digests[1:])
    assert install(three[2], slot) == found  # again: nothing changes, the way back stays


def test_a_damaged_build_changes_nothing(three: list[Path], tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    before = install(three[0], slot)
    graph = three[1] / "onnx/embed_tokens.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\xaa")
    with pytest.raises(BuildError, match=r"second: file 'onnx/embed_tokens.onnx' differs"):
        install(three[1], slot)
    graph.unlink()
    with pytest.raises(BuildError, match=r"second: file 'onnx/embed_tokens.onnx' is missing"):
        install(three[1], slot)
    graph.symlink_to("/dev/zero")
    with pytest.raises(BuildError, match=r"is a link"):
        install(three[1], slot)
    with pytest.raises(BuildError, match="no such build folder"):
        install(tmp_path / "nowhere", slot)
    assert read_slot(slot) == before and student_of(slot) == "first"
    assert len(list((slot / "builds").iterdir())) == 1


def test_what_the_manifest_does_not_name_is_not_installed(three: list[Path], tmp_path: Path) -> None:
    (three[0] / "extra").write_text("from a stick")
    found = install(three[0], tmp_path / "slot")
    assert not (tmp_path / "slot/builds" / str(found.current) / "extra").exists()


def test_a_copy_that_went_bad_is_replaced(three: list[Path], tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    first = install(three[0], slot)
    (slot / "current" / "config.json").write_text("{}")
    with pytest.raises(BuildError, match="differs"):
        open_build(slot / "current")
    again = install(three[0], slot)
    assert again.current == f"{first.current}.1" and student_of(slot) == "first"


def test_a_way_back_that_went_bad_is_not_taken(three: list[Path], tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    install(three[0], slot)
    found = install(three[1], slot)
    (slot / "builds" / str(found.previous) / "config.json").write_text("{}")
    with pytest.raises(BuildError, match=r"'config.json' differs"):
        rollback(slot)
    assert student_of(slot) == "second"


@pytest.mark.parametrize(
    "target", ["/etc", "../elsewhere", "builds/..", "builds/a/b", "builds/missing", "builds/"]
)
def test_a_current_that_leads_elsewhere(tmp_path: Path, target: str) -> None:
    slot = tmp_path / "slot"
    slot.mkdir()
    (slot / "current").symlink_to(target)
    with pytest.raises(BuildError, match="leads to no build of this slot"):
        read_slot(slot)


def test_a_folder_that_is_no_slot(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has no build installed"):
        rollback(tmp_path)
    (tmp_path / "current").mkdir()
    with pytest.raises(BuildError, match="'current' is no link"):
        read_slot(tmp_path)


CHILD = """
import sys
from pathlib import Path
from edge.install import install, rollback
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[2:]:
    install(Path(name), Path(sys.argv[1]))
rollback(Path(sys.argv[1]))
"""


def start(slot: Path, builds: list[Path]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(slot), *map(str, builds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("points", [4, pytest.param(40, marks=pytest.mark.full)])
def test_killed_at_random_points(three: list[Path], tmp_path: Path, points: int) -> None:
    slot = tmp_path / "slot"
    install(three[0], slot)
    process = start(tmp_path / "timed", three)
    began = time.monotonic()
    begin(process)
    assert process.wait() == 0
    duration_s = time.monotonic() - began
    generator = random.Random(points)
    for point in range(points):
        process = start(slot, three[1:] + three[:1])
        begin(process)
        time.sleep(duration_s * 1.1 * (point + generator.random()) / points)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert student_of(slot) in ("first", "second", "third")  # whole: every hash was compared
        found = read_slot(slot)
        if found.previous is not None:
            open_build(slot / "builds" / found.previous)
    assert install(three[2], slot).current == sha256_file(three[2] / "manifest.json")
    assert student_of(slot) == "third"
    assert not [path for path in (slot / "builds").iterdir() if path.name.startswith(".tmp-")]
