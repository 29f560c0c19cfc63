"""Opens a build, warms it up and listens."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import uvicorn
from PIL import Image

from edge.model import EdgeModel
from edge.serve.app import Endpoint
from edge.serve.metrics import Metrics
from edge.serve.settings import ServeSettings
from edge.serve.worker import Worker
from genrecal.core.console import console
from genrecal.core.errors import ConfigError

# Requests that may be connected beyond those with a place; they are told to come again.
CONNECTIONS = 1024
SHUTDOWN_S = 10
# Longer than clients keep an idle connection: one that both ends close at once fails the request on it.
KEEP_ALIVE_S = 75


def warm_up(model: EdgeModel) -> None:
    """One short answer about a grey image: memory is taken and kernels are chosen before anybody waits."""
    model.answer((Image.new("RGB", (64, 64), "grey"), "?"), max_new_tokens=2)
    model.forget()


def endpoint(model: EdgeModel, settings: ServeSettings, *, name: str) -> Endpoint:
    """The routes of an opened model, its worker started."""
    metrics = Metrics()
    worker = Worker(model, settings, metrics)
    worker.start()
    return Endpoint(worker, name=name, settings=settings, metrics=metrics)


def serve(
    open_model: Callable[[], EdgeModel], settings: ServeSettings, *, name: str, host: str, port: int
) -> None:
    """Answer requests for the model `name` until the process is told to end.

    Raises:
        ConfigError: the address cannot be listened at.
        BuildError: the build cannot be used.
        DeviceError: this machine is no such device.
    """
    # A port that is taken is told before a large build is loaded; until it listens, clients are refused.
    listening = bound(host, port)
    model = open_model()
    warm_up(model)
    config = uvicorn.Config(
        endpoint(model, settings, name=name).app(),
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    console.print(
        f"serve: model {json.dumps(name)} at {url_of(listening)}/v1, context up to "
        f"{model.budget.max_context:,} tokens; end with Ctrl-C",
        soft_wrap=True,
    )
    uvicorn.Server(config).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ConfigError: it is taken, or not this machine's.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({error.strerror or error})", where="genrecal serve"
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
