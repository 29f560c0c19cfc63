"""Any OpenAI-compatible endpoint as a subject: images as data URLs, several requests at a time.

Which weights answer behind an address nobody can check from here: the score names the address, the model that
was asked for and those that the endpoint said have answered.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from PIL import Image

from bench.chat import ChatClient, endpoint_from
from bench.subjects.settings import fingerprint_of, seed_of
from bench.types import Answer, Facts, Query, SubjectSpec
from genrecal.core.errors import BenchError

VARIABLE = "GENRECAL_SUBJECT"  # GENRECAL_SUBJECT_API_KEY, else OPENAI_API_KEY
TIMEOUT_S = 600.0


class EndpointSubject:
    """A model behind an address, asked one question a request."""

    chunk = 1

    def __init__(self, spec: SubjectSpec) -> None:
        endpoint = endpoint_from(spec.model or "", spec.url, variable=VARIABLE, timeout_s=TIMEOUT_S)
        if endpoint is None:
            raise BenchError("an endpoint needs an address", where=spec.name)
        self.spec, self.lanes = spec, spec.batch_size
        self._client = ChatClient(endpoint)
        self._lock, self._served = Lock(), set[str]()
        # What is not sent is the server's own: its settings are the model's default ones.
        self._settings: dict[str, Any] = {"temperature": 0} if spec.greedy else {}
        if spec.max_new_tokens is not None:
            self._settings["max_tokens"] = spec.max_new_tokens
        self.fingerprint = fingerprint_of(spec, {"url": spec.url, "model": spec.model}, self._settings)

    @property
    def facts(self) -> Facts:
        return Facts(
            kind="endpoint",
            weights_bytes=None,
            precision="unknown",
            device="endpoint",
            generation=self._settings,
            about={"url": self.spec.url, "model": self.spec.model, "served_models": sorted(self._served)},
        )

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One request after the other; alone, a query also gets its time to the first token.

        Raises:
            BenchError: a request failed for good. Answers that came before are kept.
        """
        return [self._one(query) for query in queries]

    def forget(self) -> None:
        """What the server keeps is its own affair."""

    def _one(self, query: Query) -> Answer:
        seed = {} if self.spec.greedy else {"seed": seed_of(self.spec.seed, [query]) % 2**31}
        message = {"role": "user", "content": [_part(part) for part in query.parts]}
        reply = self._client.stream([message], **self._settings, **seed)
        if reply.model:
            with self._lock:
                self._served.add(reply.model)
        if reply.tokens is None or reply.prompt_tokens is None:
            raise BenchError(
                "the endpoint does not count tokens", where=self.spec.url, fix="Use one that sends `usage`"
            )
        return Answer(
            text=reply.text.strip(),
            tokens=reply.tokens,
            prompt_tokens=reply.prompt_tokens,
            first_token_s=reply.first_token_s,
            total_s=reply.total_s,
        )


def _part(part: str | Image.Image) -> Mapping[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    stream = io.BytesIO()
    part.save(stream, format="PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
