"""A server in this process, on a port of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import openai
import pytest
import uvicorn

from edge.model import EdgeModel
from edge.serve.run import KEEP_ALIVE_S, endpoint, warm_up
from edge.serve.settings import ServeSettings
from edge.serve.worker import Worker

NAME = "build"
Serving = Callable[..., AbstractContextManager["Server"]]


class Server:
    """A running server, and the official client of its address."""

    def __init__(self, model: EdgeModel, settings: ServeSettings) -> None:
        made = endpoint(model, settings, name=NAME)
        self.worker: Worker = made._worker
        config = uvicorn.Config(
            made.app(),
            host="127.0.0.1",
            port=0,
            log_level="error",
            timeout_graceful_shutdown=5,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(timeout=20)
        assert not self.thread.is_alive() and not self.worker.alive


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def serving(build_folder: Path) -> Serving:
    """Starts a server with other settings; it ends with the block."""

    @contextmanager
    def start(**settings: float) -> Iterator[Server]:
        model = EdgeModel.open(build_folder, threads=1)
        warm_up(model)
        server = Server(model, ServeSettings(**settings))  # type: ignore[arg-type]
        try:
            yield server
        finally:
            server.stop()

    return start


@pytest.fixture(scope="module")
def server(serving: Serving) -> Iterator[Server]:
    with serving(max_body_bytes=400_000, max_pixels=40_000, max_images=3, max_new_tokens=3000) as started:
        yield started
