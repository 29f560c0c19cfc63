"""Fetching from a real HTTP server, with what comes out short or not at all."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bench import get
from bench.task import Source
from bench.tasks import TASKS
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_bytes

BODY = b"index\tquestion\n" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path == "/gone.tsv":
            self.send_error(404)
            return
        self.send_response(200)
        # A connection that breaks: more is announced than comes.
        self.send_header("Content-Length", str(len(BODY) + (7 if self.path == "/short.tsv" else 0)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def served(url: str):
    return replace(TASKS["mmb"], source=Source(files="a TSV", licence="Apache-2.0", urls=(url,)))


def test_files_come_with_a_record_and_once(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(get.task_named.__globals__["TASKS"], "mmb", served(f"{server}/mmb.tsv"))
    record = get.get_command("mmb", tmp_path / "out")
    content = json.loads(record.read_text())
    assert content["files"] == {"mmb.tsv": sha256_bytes(BODY)}
    assert content["licence"] in capsys.readouterr().out
    get.get_command("mmb", tmp_path / "out")
    assert Handler.asked == ["/mmb.tsv"]


@pytest.mark.parametrize("name", ["gone.tsv", "short.tsv"])
def test_what_is_not_whole_is_not_kept(server, tmp_path, name):
    source = Source(files="", licence="", urls=(f"{server}/{name}",))
    with pytest.raises(BenchError, match="cannot be fetched"):
        get.fetch(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_was_pinned_is_refused(server, tmp_path):
    url = f"{server}/mmb.tsv"
    right = Source(files="", licence="", urls=(url,), md5={"mmb.tsv": hashlib.md5(BODY).hexdigest()})
    get.fetch(right, tmp_path)
    with pytest.raises(BenchError, match=r"mmb\.tsv: is another file than VLMEvalKit names"):
        get.fetch(replace(right, md5={"mmb.tsv": "0" * 32}), tmp_path)


def test_the_pinned_commit_is_asked_for_unless_another_is_named(tmp_path, monkeypatch):
    asked = []

    def dataset_info(self, repository, *, revision):
        asked.append((repository, revision))
        raise OSError("far enough")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    source = TASKS["mathvista"].source
    for revision in (None, "main"):
        with pytest.raises(BenchError, match="the hub gives nothing"):
            get.fetch(source, tmp_path, revision=revision)
    assert asked == [("AI4Math/MathVista", source.revision), ("AI4Math/MathVista", "main")]


def test_pins_are_whole():
    revisions = [task.source.revision for task in TASKS.values() if task.source.revision]
    assert len(revisions) == 8 and all(re.fullmatch("[0-9a-f]{40}", one) for one in revisions)
    for task in TASKS.values():
        names = {url.rsplit("/", 1)[-1] for url in task.source.urls}
        assert task.source.md5.keys() <= names
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in task.source.md5.values())


def test_a_hub_out_of_reach_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BenchError, match="the hub gives nothing"):
        get.fetch(TASKS["mmmu"].source, Path(tmp_path))


def test_every_benchmark_says_where_it_is_and_on_what_terms():
    for task in TASKS.values():
        assert task.source.licence and task.source.files
        assert task.source.repository or task.source.urls, task.name


def test_an_unknown_name(tmp_path):
    with pytest.raises(BenchError, match="unknown set 'mmlu'"):
        get.get_command("mmlu", tmp_path)
