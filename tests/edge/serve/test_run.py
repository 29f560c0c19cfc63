"""`genrecal serve` as a process: it says where it listens, answers, and ends when it is told to."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from edge.model import EdgeModel
from edge.serve.run import bound, url_of

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_command(build_folder: Path, edge_model: EdgeModel, ending: signal.Signals) -> None:
    program = "from cli import app; app()"
    command = [sys.executable, "-c", program, "serve", str(build_folder), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r'model "build" at (http://127\.0\.0\.1:\d+)/v1', line)
        assert found, line
        request = {
            "model": "build",
            "messages": [{"role": "user", "content": "what is in the picture?"}],
            "max_tokens": 5,
        }
        body = json.dumps(request).encode()
        # It says so just before it listens.
        for _ in range(100):
            try:
                answer = json.load(
                    urllib.request.urlopen(f"{found[1]}/v1/chat/completions", body, timeout=30)
                )
                break
            except urllib.error.URLError as error:
                assert isinstance(error.reason, ConnectionRefusedError), error
                time.sleep(0.05)
        expected = edge_model.answer(("what is in the picture?",), max_new_tokens=5).text
        assert answer["choices"][0]["message"]["content"] == expected
    finally:
        process.send_signal(ending)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err, err


def test_a_port_that_is_taken(build_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli.app, ["serve", str(build_folder), "--port", str(port)])
    assert result.exit_code == 2
    assert f"cannot listen at 127.0.0.1, port {port} (Address already in use)" in result.stderr


def test_an_address_of_another_machine(build_folder: Path) -> None:
    result = CliRunner().invoke(cli.app, ["serve", str(build_folder), "--host", "192.0.2.1"])
    assert result.exit_code == 2 and "cannot listen at 192.0.2.1" in result.stderr


def test_urls() -> None:
    with bound("127.0.0.1", 0) as one:
        assert url_of(one) == f"http://127.0.0.1:{one.getsockname()[1]}"
