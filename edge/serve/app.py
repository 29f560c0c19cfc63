"""The endpoint's routes.

POST /v1/chat/completions   streamed or whole        GET /health    200 while answers come
GET  /v1/models             the one model            GET /metrics   Prometheus text
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edge.generate import Answer
from edge.serve.metrics import Metrics
from edge.serve.request import Refused, read_request
from edge.serve.settings import ServeSettings
from edge.serve.worker import Event, Job, Worker, timed_out
from genrecal.core.errors import GenrecalError

# How an answer ended, in OpenAI's words.
FINISH = {"eos": "stop", "stop_string": "stop", "length": "length", "time": "length"}
GONE = 499  # nginx's status for a client that did not wait
# A body comes quickly or not at all; a client that sends it byte by byte holds a place.
BODY_S = 30.0
# An answer that ends by its time limit still has to be sent.
GRACE_S = 0.5


class Endpoint:
    """The routes of one model.

    Args:
        worker: answers; started already.
        name: what clients call the model.
        settings: limits.
        metrics: counted into.
    """

    def __init__(self, worker: Worker, *, name: str, settings: ServeSettings, metrics: Metrics) -> None:
        self._worker, self._name, self._settings, self._metrics = worker, name, settings, metrics
        self._created = int(time.time())
        metrics.watch(lambda: worker.waiting)

    def app(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await run_in_threadpool(self._worker.stop)

        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
            ],
            exception_handlers={HTTPException: _not_found},
            lifespan=lifespan,
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] == self._name:
            return JSONResponse(self._card())
        return self._error(Refused(f"only '{self._name}' is served here", status=404, param="model"))

    async def health(self, request: Request) -> Response:
        alive = self._worker.alive
        content = {
            "status": "ok" if alive else "failed",
            "model": self._name,
            "waiting": self._worker.waiting,
        }
        return JSONResponse(content, status_code=200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def complete(self, request: Request) -> Response:
        """A chat completion."""
        try:
            self._worker.admit()
        except Refused as error:
            return self._error(error)
        deadline = time.perf_counter() + self._settings.timeout_s
        try:
            body = await asyncio.wait_for(self._body(request), timeout=BODY_S)
            # Base64 and image headers: not in the loop that every other client waits for.
            conversation = await run_in_threadpool(read_request, body, self._settings, model=self._name)
        except BaseException as error:
            self._worker.leave()
            if isinstance(error, Refused):
                return self._error(error)
            if isinstance(error, asyncio.TimeoutError):
                return self._error(timed_out())
            if isinstance(error, ClientDisconnect):
                return self._gone()
            raise
        job = Job(conversation, deadline, asyncio.get_running_loop())
        self._worker.submit(job)
        try:
            if not conversation.stream:
                return await self._whole(request, job)
            # The status is told with the first event: what fails before it is an error, not a broken stream.
            first = await self._next(request, job)
        except ClientDisconnect:
            return self._gone()
        except asyncio.CancelledError:
            job.cancelled.set()
            raise
        if isinstance(first, GenrecalError):
            return self._error(first)
        return Stream(self._chunks(job, first), job)

    async def _body(self, request: Request) -> bytes:
        """The body, no larger than allowed whatever its header says."""
        limit = self._settings.max_body_bytes
        too_large = Refused(f"the request has more than {limit:,} bytes", status=413)
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_large
        return bytes(body)

    async def _next(self, request: Request, job: Job) -> Event:
        """The next event of a job, while its client waits and its time is not over."""
        event = asyncio.ensure_future(job.events.get())
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait(
                {event, gone},
                timeout=max(0.0, job.deadline + GRACE_S - time.perf_counter()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if event.done():
                return event.result()
            job.cancelled.set()
            if gone.done():
                raise ClientDisconnect
            return timed_out()
        finally:
            event.cancel()
            gone.cancel()

    async def _whole(self, request: Request, job: Job) -> Response:
        while True:
            event = await self._next(request, job)
            if isinstance(event, GenrecalError):
                return self._error(event)
            if isinstance(event, Answer):
                self._metrics.requests.labels(200).inc()
                message = {"role": "assistant", "content": event.text, "refusal": None}
                choice = {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": FINISH[event.stop],
                }
                return JSONResponse(
                    {**self._head("chat.completion"), "choices": [choice], "usage": _usage(event)}
                )

    async def _chunks(self, job: Job, first: Event) -> AsyncIterator[str]:
        """Server-sent events."""
        head = self._head("chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return _event({**head, "choices": [choice]})

        status = GONE
        try:
            yield chunk({"role": "assistant", "content": ""})
            event = first
            while isinstance(event, str):
                yield chunk({"content": event})
                event = await job.events.get()
            if isinstance(event, Answer):
                yield chunk({}, FINISH[event.stop])
                if job.conversation.include_usage:
                    yield _event({**head, "choices": [], "usage": _usage(event)})
                status = 200
            else:
                yield _event(_error_body(event))
                status = getattr(event, "status", 500)
            yield "data: [DONE]\n\n"
        finally:
            self._metrics.requests.labels(status).inc()

    def _gone(self) -> Response:
        self._metrics.requests.labels(GONE).inc()
        return Response(status_code=GONE)

    def _head(self, kind: str) -> dict[str, Any]:
        number = uuid.uuid4().hex
        return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time()), "model": self._name}

    def _card(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "genrecal"}

    def _error(self, error: GenrecalError) -> Response:
        status, retry_s = getattr(error, "status", 500), getattr(error, "retry_s", None)
        self._metrics.requests.labels(status).inc()
        headers = {"Retry-After": str(retry_s)} if retry_s else None
        return JSONResponse(_error_body(error), status_code=status, headers=headers)


class Stream(StreamingResponse):
    """Server-sent events of a job, which ends when the client does not listen any more."""

    def __init__(self, chunks: AsyncIterator[str], job: Job) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancelled.set()


async def _disconnect(request: Request) -> None:
    """Returns when the client is gone; the body was read whole before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _not_found(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = "POST /v1/chat/completions, GET /v1/models, /health, /metrics"
    refused = Refused(f"{request.method} {request.url.path} is not here; {known} are", status=status)
    return JSONResponse(_error_body(refused), status_code=status)


def _error_body(error: GenrecalError) -> dict[str, Any]:
    kind, param = getattr(error, "kind", "server_error"), getattr(error, "param", None)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": None}}


def _usage(answer: Answer) -> dict[str, Any]:
    new = len(answer.token_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": answer.prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": answer.reused_tokens},
    }


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
