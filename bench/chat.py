"""Calls of any OpenAI-compatible endpoint: replies are bounded in time and size, failures tried again.

messages -> POST /chat/completions -> ChatReply
passing failure (no connection, 408, 429, 5xx, a reply cut off or of another form) -> wait, again
refusal of this request (400, 413, 422) -> CallFailed
refusal of every request (401, 403, 404) -> BenchError
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from genrecal.core.errors import BenchError

if TYPE_CHECKING:
    import tenacity

CALL_ATTEMPTS = 6
LONGEST_WAIT_S = 120.0  # that a server's Retry-After is followed to
MAX_REPLY_BYTES = 4 * 2**20
PASSING_STATUS = (408, 409, 425, 429)  # and 500 and above
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is; the key stays in memory."""

    base_url: str
    model: str
    api_key: str
    max_tokens: int = 3  # of a judge, the official setting; models that think first need more
    timeout_s: float = 60.0  # for a whole reply, also one that comes in drops


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """What came back; counts are None where the server gives none."""

    text: str
    model: str | None  # that the server says has answered: a name may stand for changing models
    prompt_tokens: int | None
    tokens: int | None
    total_s: float
    first_token_s: float | None = None  # of a streamed reply


class CallFailed(BenchError):
    """One request that got no reply; others may.

    Args:
        unreachable: there was no connection at all.
    """

    def __init__(self, what: str, *, where: str, unreachable: bool = False) -> None:
        super().__init__(what, where=where)
        self.unreachable = unreachable


class _Passing(Exception):
    """A reply that another try may mend: cut off, too slow, too long, or of another form."""


class _Loose(BaseModel):
    model_config = ConfigDict(strict=True)


class _Said(_Loose):
    content: str | None = None


class _Choice(_Loose):
    message: _Said


class _Usage(_Loose):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(_Loose):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class _Delta(_Loose):
    content: str | None = None


class _PieceChoice(_Loose):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Piece(_Loose):
    choices: list[_PieceChoice] = []
    model: str | None = None
    usage: _Usage | None = None


class ChatClient:
    """One endpoint; its methods may be called from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        # Imported here: the client takes about a second to import, and only who calls a model needs it.
        import openai

        self.endpoint = endpoint
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key,
            timeout=endpoint.timeout_s,
            max_retries=0,  # the retries below are the only ones
        )

    def complete(self, messages: Sequence[Message], **settings: Any) -> ChatReply:
        """The reply to `messages`.

        Args:
            messages: role and content of each.
            settings: further fields of the request (max_tokens, temperature, seed).

        Raises:
            CallFailed: this request got no reply.
            BenchError: no request will: the address, the model or the key is wrong.
        """
        return self._tried(lambda: self._once(messages, settings))

    def stream(self, messages: Sequence[Message], **settings: Any) -> ChatReply:
        """As `complete`, but streamed: the reply's time to its first token is measured."""
        return self._tried(lambda: self._streamed(messages, settings))

    def _tried(self, call: Callable[[], ChatReply]) -> ChatReply:
        import openai
        import tenacity

        where = self.endpoint.base_url
        try:
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception(_passes),
                stop=tenacity.stop_after_attempt(CALL_ATTEMPTS),
                wait=_pause,
                reraise=True,
            ):
                with attempt:
                    return call()
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            # Every other request would meet the same wall.
            raise BenchError(
                f"the endpoint refuses ({_line(error)})", where=where, fix="Check the address, model and key"
            ) from None
        except openai.APITimeoutError as error:
            limit_s = f"{self.endpoint.timeout_s:g} s"
            raise CallFailed(f"no reply within {limit_s} ({_line(error)})", where=where) from None
        except openai.APIConnectionError as error:
            raise CallFailed(f"no connection ({_line(error)})", where=where, unreachable=True) from None
        except (openai.OpenAIError, _Passing) as error:
            raise CallFailed(_line(error), where=where) from None
        raise AssertionError("tenacity ends with a result or an error")

    def _once(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> ChatReply:
        started = time.perf_counter()
        with self._client.chat.completions.with_streaming_response.create(
            model=self.endpoint.model, messages=cast(Any, list(messages)), **settings
        ) as response:
            body = self._body(response, started)
        try:
            completion = _Completion.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise _Passing(f"the reply is no chat completion ({place or 'JSON'}: {problem['msg']})") from None
        if not completion.choices:
            raise _Passing("the reply holds no choice")
        usage = completion.usage or _Usage()
        return ChatReply(
            text=completion.choices[0].message.content or "",
            model=completion.model,
            prompt_tokens=usage.prompt_tokens,
            tokens=usage.completion_tokens,
            total_s=time.perf_counter() - started,
        )

    def _streamed(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> ChatReply:
        started = time.perf_counter()
        texts: list[str] = []
        first_s: float | None = None
        model: str | None = None
        usage, finished = _Usage(), False
        with self._client.chat.completions.create(
            model=self.endpoint.model,
            messages=cast(Any, list(messages)),
            stream=True,
            stream_options={"include_usage": True},
            **settings,
        ) as events:
            for event in self._unbroken(events, started):
                try:
                    piece = _Piece.model_validate(event.model_dump(exclude_none=True))
                except ValidationError as error:
                    raise _Passing(f"the reply is no stream of completions ({_line(error)})") from None
                model, usage = piece.model or model, piece.usage or usage
                for choice in piece.choices:
                    finished = finished or choice.finish_reason is not None
                    if choice.delta.content:
                        first_s = first_s or time.perf_counter() - started
                        texts.append(choice.delta.content)
        if not finished:
            raise _Passing("the reply is cut off: no reason to stop came")
        total_s = time.perf_counter() - started
        return ChatReply(
            text="".join(texts),
            model=model,
            prompt_tokens=usage.prompt_tokens,
            tokens=usage.completion_tokens,
            total_s=total_s,
            first_token_s=first_s or total_s,  # an empty answer is there when it ends
        )

    def _body(self, response: Any, started: float) -> bytes:
        """The body, read in pieces: the client's own limit is on each piece and not on the whole."""
        body = bytearray()
        for piece in self._unbroken(response.iter_bytes(), started):
            body += piece
            if len(body) > MAX_REPLY_BYTES:
                raise _Passing(f"the reply has more than {MAX_REPLY_BYTES:,} bytes")
        return bytes(body)

    def _unbroken(self, pieces: Iterable[Any], started: float) -> Iterator[Any]:
        """What comes, until the time is over."""
        import openai

        coming = iter(pieces)
        while True:
            try:
                piece = next(coming, None)
            except openai.OpenAIError:
                raise
            except Exception as error:  # the transport's, which is another package in other versions
                raise _Passing(f"the reply is cut off ({type(error).__name__}: {_line(error)})") from None
            if piece is None:
                return
            yield piece
            if time.perf_counter() - started > self.endpoint.timeout_s:
                raise _Passing(f"the reply has not ended after {self.endpoint.timeout_s:g} s")


def endpoint_from(
    model: str,
    base_url: str | None = None,
    *,
    variable: str = "GENRECAL_JUDGE",
    timeout_s: float = 60.0,
    needs_key: bool = True,
) -> Endpoint | None:
    """An endpoint from options, else from the environment.

    Args:
        model: the model's name there.
        base_url: its address; None: the variable `VARIABLE_BASE_URL`.
        variable: the key is in `VARIABLE_API_KEY`, else in OPENAI_API_KEY.
        needs_key: False where kept replies alone are read.

    Returns: None where no address is given.

    Raises:
        BenchError: there is an address but no key.
    """
    base_url = base_url or os.environ.get(f"{variable}_BASE_URL")
    if not base_url:
        return None
    api_key = os.environ.get(f"{variable}_API_KEY") or os.environ.get("OPENAI_API_KEY")
    if not api_key and needs_key:
        raise BenchError(
            "there is no API key",
            where=base_url,
            fix=f"Set {variable}_API_KEY (any word will do for a server that asks for none)",
        )
    return Endpoint(base_url=base_url, model=model, api_key=api_key or "", timeout_s=timeout_s)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: more each time and by chance, but no less than the server asks for."""
    import tenacity

    drawn = tenacity.wait_random_exponential(multiplier=0.5, max=30)(state)
    error = state.outcome.exception() if state.outcome else None
    return max(drawn, min(_retry_after_s(error), LONGEST_WAIT_S))


def _passes(error: BaseException) -> bool:
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in PASSING_STATUS or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError | _Passing)


def _retry_after_s(error: BaseException | None) -> float:
    """What a refused request's header asks for; 0 where there is none. Dates are not read."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return 0.0
    value = error.response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
