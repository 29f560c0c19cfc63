"""One thread that owns the model; requests wait in a bounded queue and are answered one after the other.

    event loop --submit--> queue --> thread: model.stream --events--> event loop

A job whose client is gone, or whose time is over, ends with the next piece of text or is never begun.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from edge.generate import Answer
from edge.model import EdgeModel
from edge.serve.metrics import Metrics
from edge.serve.request import Conversation, Refused
from edge.serve.settings import ServeSettings
from genrecal.core.errors import ConfigError, DataError, GenrecalError

Event = str | Answer | GenrecalError
LOGGER = logging.getLogger(__name__)
# How many answers the time until a place is free is told by.
REMEMBERED = 16


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way."""

    conversation: Conversation
    deadline: float
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    """Pieces of text, then the answer or an error."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def give(self, event: Event) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancelled.set()


class Worker:
    """Answers jobs in a thread of its own.

    Args:
        model: no other thread may use it from now on.
        settings: limits.
        metrics: counted into.
    """

    def __init__(self, model: EdgeModel, settings: ServeSettings, metrics: Metrics) -> None:
        self._model, self._settings, self._metrics = model, settings, metrics
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._open = 0
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._current: Job | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the answer that is computed, refuse those that wait, and end the thread."""
        self._stopping = True
        if (current := self._current) is not None:
            current.cancelled.set()
        self._jobs.put(None)
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that have a place, the one that is answered included."""
        return self._open

    def admit(self) -> None:
        """Take a place, before the request is even read. `leave` gives it back where no job comes of it;
        the thread does when it is done with the job.

        Raises:
            Refused: all are taken; it says when to come again.
        """
        if self._stopping or not self.alive:
            raise ended()
        with self._lock:
            if self._open <= self._settings.queue:
                self._open += 1
                return
        mean_s = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        raise Refused(
            "too many requests are waiting",
            status=429,
            kind="rate_limit_error",
            retry_s=max(1, min(60, round(mean_s * self._settings.queue / 2))),
        )

    def leave(self) -> None:
        with self._lock:
            self._open -= 1

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._current = job
            try:
                self._answer(job)
            finally:
                self.leave()
                # The frame of this loop would keep a request's images until the next one comes.
                self._current = job = None

    def _answer(self, job: Job) -> None:
        if self._stopping or job.cancelled.is_set():
            job.give(ended())
            return
        began = time.perf_counter()
        try:
            job.give(self._generate(job))
        except Refused as error:
            job.give(error)
        except (DataError, ConfigError) as error:
            job.give(Refused(str(error)))
        except GenrecalError as error:
            job.give(Refused(str(error), status=500, kind="server_error"))
        except Exception as error:  # whatever it is, one request must not end the server
            LOGGER.exception("a request failed")
            line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            job.give(Refused(line, status=500, kind="server_error"))
        self._seconds.append(time.perf_counter() - began)

    def _generate(self, job: Job) -> Answer | Refused:
        left_s = job.deadline - time.perf_counter()
        if left_s <= 0:
            return timed_out()
        overrides: dict[str, Any] = {"max_time": left_s, **job.conversation.overrides}
        limit = min(self._model.settings.max_new_tokens, self._settings.max_new_tokens)
        overrides.setdefault("max_new_tokens", limit)
        stream = self._model.stream(job.conversation.messages(), **overrides)
        try:
            for piece in stream:
                job.give(piece)
                if job.cancelled.is_set():
                    return ended()  # its client is gone, or the server ends
        finally:
            stream.close()
        self._metrics.answered(stream.answer, self._model)
        return stream.answer


def ended() -> Refused:
    return Refused("the server is ending", status=503, kind="server_error", retry_s=10)


def timed_out() -> Refused:
    return Refused("the time for this request is over", status=504, kind="timeout")
