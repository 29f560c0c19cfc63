"""Uploads, against a server on this machine that speaks as much of a hub's protocol as an upload needs."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import reset_sessions

from genrecal.core.errors import BuildError, ModelError
from genrecal.export import parity
from genrecal.export.build import export_run
from genrecal.export.publish import publish


class Hub(BaseHTTPRequestHandler):
    """Takes every file within the commit itself, as a hub does with small ones."""

    protocol_version = "HTTP/1.1"
    created: dict[str, bool]
    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name.startswith("closed/"):
                return self._say({"error": "no right to write"}, status=403)
            self.created[name] = asked["private"]
            return self._say({"url": f"{self.address}/{name}"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._say({"files": files})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            repository = self.path.removeprefix("/api/models/").split("/commit/")[0]
            url = f"{self.address}/{repository}/commit/{'1' * 40}"
            return self._say({"commitUrl": url, "commitOid": "1" * 40})
        if self.path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        return self._say({"error": "unknown"}, status=404)

    def do_GET(self) -> None:
        self._say({"error": "no such repository"}, status=404)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _say(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"created": {}, "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    # Sessions are kept, and one that was made offline stays so.
    reset_sessions()
    yield handler
    reset_sessions()
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def build(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "build"
    return export_run(student_folder, folder, precision="fp32", parity_prompts=parity.default_queries()[:1])


def test_a_build_goes_up_whole_and_private(hub: type[Hub], build: Path) -> None:
    assert publish(build, "someone/build").endswith(f"/someone/build/commit/{'1' * 40}")
    assert hub.created == {"someone/build": True}
    files = {path.relative_to(build).as_posix(): path for path in build.rglob("*") if path.is_file()}
    assert set(hub.files) == set(files)
    for name, path in files.items():
        assert hashlib.sha256(hub.files[name]).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_a_student_goes_up_and_may_be_public(hub: type[Hub], student_folder: Path) -> None:
    publish(student_folder, "someone/student", private=False)
    assert hub.created == {"someone/student": False}
    assert "model.safetensors" in hub.files


def test_what_is_refused(hub: type[Hub], build: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"closed/build: the hub did not take it .*403"):
        publish(build, "closed/build")
    with pytest.raises(ModelError, match="the hub did not take it"):
        publish(build, "no name at all")
    with pytest.raises(ModelError, match="is neither a student nor a build"):
        publish(tmp_path, "someone/build")
    damaged = shutil.copytree(build, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    with pytest.raises(BuildError):
        publish(damaged, "someone/build")
    assert not hub.files


def test_nothing_goes_up_offline(build: Path) -> None:
    with pytest.raises(ModelError, match="the hub did not take it"):
        publish(build, "someone/build")
