"""A chat endpoint on this machine that does in turn what a script says, misbehaviour included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Step:
    """One response: status and body as they are, or what breaks it."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0  # before anything is sent
    cut: bool = False  # half of the body, then the connection ends
    drip_s: float = 0.0  # between two bytes of the body


@dataclass
class Server:
    """Its last step is repeated; a text is a reply, a number a status, a callable sees the request."""

    url: str = ""
    script: list[Any] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def step(self, request: dict) -> Step:
        with self.lock:
            self.asked.append(request)
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(step):
            step = step(request)
        if isinstance(step, int):
            return Step(status=step, body=b'{"error": {"message": "no"}}')
        return Step(body=completion(step)) if isinstance(step, str) else step


def pause(seconds: float) -> None:
    # Tests take time.sleep away from the client, which is in the same process.
    Event().wait(seconds)


def completion(content: Any, **more: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]}
    return json.dumps({**body, "model": "judge-1-0613", **more}).encode()


@contextmanager
def chat_server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            step = state.step(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            pause(step.wait_s)
            self.send_response(step.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(step.body)))
            for name, value in step.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                if step.drip_s:
                    for place in range(len(step.body)):
                        self.wfile.write(step.body[place : place + 1])
                        pause(step.drip_s)
                else:
                    self.wfile.write(step.body[: len(step.body) // 2] if step.cut else step.body)
            except OSError:
                pass  # the client has had enough
            self.close_connection = self.close_connection or step.cut

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        Thread(target=http.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield state
        http.shutdown()
