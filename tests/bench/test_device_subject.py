"""A build asked over ssh: an sshd on this machine stands for the device; torch cannot be imported there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench.perf import measure
from bench.subject import open_subject, spec_of
from bench.types import Remote
from genrecal.core.errors import BenchError, BuildError, DeviceError
from tests.bench.test_subject_kinds import said
from tests.edge.jetson.trees import orin_nano

ROOT = Path(__file__).parents[2]
SSHD = os.environ.get("GENRECAL_TEST_SSHD") or shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="NO SSHD HERE: asking a device over ssh is not tested; install openssh-server",
)

ON_THE_DEVICE = """#!/bin/sh
exec {python} -c '
import sys
sys.path.insert(0, "{root}")
for name in ("torch", "transformers", "openai", "scipy", "pandas"):
    sys.modules[name] = None
{tree}
from cli import app
app()' "$@"
"""
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
"""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """A server with a key and a port of its own; gives its process and how to reach it."""
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    command = folder / "genrecal"
    command.write_text(ON_THE_DEVICE.format(python=sys.executable, root=ROOT, tree=""))
    # The same on a file tree as an Orin Nano shows it: it answers on the CPU, whose work is on the rails too.
    tree = f'import edge.answer, pathlib; edge.answer.ROOT = pathlib.Path("{orin_nano(folder)}")'
    on_a_board = folder / "genrecal-orin"
    on_a_board.write_text(ON_THE_DEVICE.format(python=sys.executable, root=ROOT, tree=tree))
    for one in (command, on_a_board):
        one.chmod(0o755)
    # By its whole path: sshd starts itself again for each connection.
    process = subprocess.Popen([str(Path(SSHD).resolve()), "-D", "-e", "-f", str(folder / "config")])
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "sshd does not start"
            time.sleep(0.1)
    ssh = f"ssh -F none -p {port} -i {folder}/id -o StrictHostKeyChecking=no"
    ssh += f" -o UserKnownHostsFile={folder}/known"
    yield (
        process,
        Remote(host="127.0.0.1", ssh=tuple(ssh.split()), command=str(command), folder=f"{folder}/there"),
    )
    process.terminate()
    process.wait()


def opened(build, sshd, **more):
    return open_subject(spec_of(build, remote=sshd[1], greedy=True, max_new_tokens=8, **more))


def test_a_device_answers_as_the_build_does_here(build_folder, sshd, queries):
    here = open_subject(spec_of(build_folder, greedy=True, max_new_tokens=8))
    device = opened(build_folder, sshd)
    try:
        assert device.copied[-1] == "manifest.json" and len(device.copied) > 5
        answers = device.answer(queries)
        assert said(answers) == said(here.answer(queries))
        assert all(0 < one.first_token_s <= one.total_s for one in answers)
        assert device.fingerprint == here.fingerprint and device.peak_memory_bytes > 10e6
        facts = device.facts
        assert (facts.kind, facts.weights_bytes) == ("build", here.facts.weights_bytes)
        assert facts.about["host"] == "127.0.0.1" and "torch" in facts.about["versions"]
    finally:
        device.close()


def test_only_what_is_missing_or_damaged_is_copied_again(build_folder, sshd, queries):
    opened(build_folder, sshd).close()
    (copy,) = Path(sshd[1].folder).iterdir()
    graph = next((copy / "onnx").glob("decoder*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-7])  # a copy that was cut short
    (copy / "tokenizer.json").unlink()
    device = opened(build_folder, sshd)
    device.close()
    assert sorted(device.copied) == sorted(["tokenizer.json", f"onnx/{graph.name}"])
    device = opened(build_folder, sshd)
    device.close()
    assert device.copied == []


def test_a_broken_connection_is_made_again(build_folder, sshd, queries, monkeypatch):
    monkeypatch.setattr("bench.subjects.device.FIRST_WAIT_S", 0.01)
    device = opened(build_folder, sshd)
    try:
        whole = said(device.answer(queries))
        for child in psutil.Process(sshd[0].pid).children(recursive=True):
            child.kill()
        assert said(device.answer(queries)) == whole
        device._process.kill()
        assert said(device.answer(queries)) == whole
    finally:
        device.close()


def test_what_cannot_be_reached_or_run_is_told_at_once(build_folder, sshd, tmp_path):
    for change, message in (
        ({"command": "/nowhere/genrecal"}, "nowhere/genrecal"),
        ({"ssh": ("ssh", "-F", "none", "-p", "9")}, "refused"),
        ({"folder": "/proc/nowhere"}, "cannot create|No such file"),
    ):
        fields = {name: getattr(sshd[1], name) for name in ("host", "ssh", "command", "folder")}
        with pytest.raises(DeviceError, match=message):
            opened(build_folder, (None, Remote(**{**fields, **change})))
    with pytest.raises(DeviceError, match="no Jetson"):
        opened(build_folder, sshd, device="jetson")


def test_an_altered_build_never_leaves_this_machine(build_folder, sshd, tmp_path):
    copy = shutil.copytree(build_folder, tmp_path / "altered")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BuildError):
        opened(copy, sshd)


def test_a_question_that_cannot_be_answered_is_named(build_folder, sshd, queries):
    from PIL import Image

    from bench.types import Query

    device = opened(build_folder, sshd)
    try:
        bad = Query(id="long", parts=(Image.new("RGB", (900, 2)), "read"))
        with pytest.raises(BenchError, match="question 'long'"):
            device.answer([queries[0], bad])
    finally:
        device.close()


def test_energy_is_measured_on_the_device_and_comes_back(build_folder, sshd, queries):
    """Timed over ssh: the rail is the board's, and nothing of this machine is in the figures."""
    remote = replace(sshd[1], command=f"{sshd[1].command}-orin")
    found = measure(spec_of(build_folder, remote=remote, greedy=True, max_new_tokens=8), queries[:2])
    assert found.energy is not None and found.energy.rail == "VDD_IN"
    # The tree shows a steady 5 W, idle or not.
    assert found.energy.mean_w == pytest.approx(5.0) == pytest.approx(found.energy.idle_w)
    assert found.energy.net_j == pytest.approx(0.0, abs=1e-9) and found.energy.gross_j > 0
    assert found.device_memory_rule is not None and "MemAvailable" in found.device_memory_rule
    assert found.board is not None and "Orin Nano" in found.board and found.throttling is not None
    assert found.missing.keys() == {"roofline"}


def test_a_device_without_rails_has_no_energy_and_says_why(build_folder, sshd, queries):
    found = measure(spec_of(build_folder, remote=sshd[1], greedy=True, max_new_tokens=8), queries[:1])
    assert found.energy is None and "no power monitor" in found.missing["energy"]
    assert found.board is None and found.first_token_s_p50 > 0


def test_a_connection_made_again_leaves_no_energy_of_a_part(build_folder, sshd, queries, monkeypatch):
    monkeypatch.setattr("bench.subjects.device.FIRST_WAIT_S", 0.01)
    remote = replace(sshd[1], command=f"{sshd[1].command}-orin", watch=True)
    device = opened(build_folder, (sshd[0], remote))
    try:
        device.begin_watch()
        device.answer(queries[:1])
        device._process.kill()
        device.answer(queries[:1])
        whole, work = device.end_watch()
        assert whole.memory_bytes is not None and work.energy is None
    finally:
        device.close()
