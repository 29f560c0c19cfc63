"""Requests to an endpoint, each made once: its replies are kept in a file, and replayed from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from bench.chat import CallFailed, ChatClient, Endpoint, Message
from bench.journal import append_lines, read_lines
from genrecal.core.files import sha256_bytes

ATTEMPTS = 5  # replies that cannot be used, before it is left at that
MORE_HEAT = 0.5  # added to the temperature for each further attempt, as MM-Vet's evaluator does


class KeptReplies:
    """An endpoint and the replies that it gave; its method may be called from several threads.

    Args:
        endpoint: the model.
        cache: a JSONL file, made where it is missing; runs may share it, one at a time.
        replay_only: make no call.
    """

    def __init__(self, endpoint: Endpoint, cache: Path, *, replay_only: bool = False) -> None:
        self.endpoint, self.cache, self.replay_only = endpoint, cache, replay_only
        self.served: set[str] = set()  # models that the endpoint said have answered
        self._client: ChatClient | None = None
        self._replies: dict[str, list[str]] = {}
        self._lock = Lock()
        for line in read_lines(cache):
            self._replies[line["key"]] = line["replies"]
            self.served |= set(line.get("served", ()))

    def ask(
        self,
        messages: Callable[[bool], Sequence[Message]],
        *,
        usable: Callable[[str], bool],
        max_tokens: int,
        run: int = 0,
        about: Mapping[str, str],
    ) -> list[str]:
        """The replies up to the first that can be used; of the last one the caller sees whether it can.

        Args:
            messages: the request; True: after a reply that could not be used.
            usable: whether a reply says what was asked for.
            max_tokens: of a reply.
            run: tells repeated requests apart.
            about: what a person finds in the cache beside the replies.

        Raises:
            CallFailed: no reply came, or none is kept where no call may be made. That is not kept: the next
                run of the same command asks again.
            BenchError: the endpoint refuses every request.
        """
        asked = [self.endpoint.base_url, self.endpoint.model, max_tokens, run, messages(False)]
        key = sha256_bytes(json.dumps(asked).encode())
        replies = self._replies.get(key)
        if replies is None and self.replay_only:
            raise CallFailed("not among the kept replies", where=str(self.cache))
        # Replies that cannot be used are kept as a record, and asked for again where that is allowed.
        if replies is None or (not usable(replies[-1]) and not self.replay_only):
            replies, served = self._call(messages, usable, max_tokens)
            with self._lock:
                self._replies[key] = replies
                self.served |= served
                line = {"key": key, "run": run, **about, "replies": replies, "served": sorted(served)}
                append_lines(self.cache, [line])
        return replies

    def _call(
        self, messages: Callable[[bool], Sequence[Message]], usable: Callable[[str], bool], max_tokens: int
    ) -> tuple[list[str], set[str]]:
        """At most ATTEMPTS replies, and the models that gave them."""
        with self._lock:
            self._client = self._client or ChatClient(self.endpoint)
        replies: list[str] = []
        served: set[str] = set()
        for attempt in range(ATTEMPTS):
            reply = self._client.complete(
                messages(attempt > 0),
                max_tokens=max_tokens,
                temperature=min(MORE_HEAT * max(attempt - 1, 0), 2.0),
            )
            replies.append(reply.text)
            served |= {reply.model} if reply.model else set()
            if usable(reply.text):
                break
        return replies, served
