"""The client of chat endpoints against a server that misbehaves in every way that servers do."""

from __future__ import annotations

import time

import pytest

from bench.chat import CallFailed, ChatClient, Endpoint, endpoint_from
from genrecal.core.errors import BenchError
from tests.bench.chat_server import Step, chat_server, completion

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server():
    with chat_server() as state:
        yield state


@pytest.fixture
def naps(monkeypatch):
    """What tenacity would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: slept.append(seconds) if seconds else None)
    return slept


def client(server, **more):
    return ChatClient(Endpoint(**{"base_url": server.url, "model": "m", "api_key": "k", **more}))


def test_a_reply_with_its_counts(server):
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    server.script = [Step(body=completion("hi", usage=usage))]
    reply = client(server).complete(HELLO, max_tokens=7)
    assert (reply.text, reply.model, reply.prompt_tokens, reply.tokens) == ("hi", "judge-1-0613", 3, 2)
    assert server.asked == [{"messages": HELLO, "model": "m", "max_tokens": 7}]


@pytest.mark.parametrize(
    "step",
    [
        500,
        502,
        408,
        429,
        Step(body=completion("hi"), cut=True),
        Step(body=b"<html>busy</html>"),
        Step(body=b""),
        Step(body=b"[]"),
        Step(body=b'{"choices": []}'),
        Step(body=b'{"choices": null}'),
        Step(body=b'{"choices": [{"message": {"content": NaN}}]}'),
        Step(body=b'{"choices": [{"message": {"content": 1.0}}]}'),
        Step(body=completion({"score": 1})),
        Step(body=completion("hi")[:-9]),
        Step(body=b"\xff\xfe" * 40),
    ],
    ids=str,
)
def test_what_passes_is_tried_again(server, naps, step):
    server.script = [step, "fine"]
    assert client(server).complete(HELLO).text == "fine"
    assert len(server.asked) == 2 and len(naps) == 1


def test_retry_after_is_followed_within_bounds(server, naps):
    for value in ("7", "86400", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan"):
        server.script = [Step(status=429, headers={"Retry-After": value}), "fine"]
        client(server).complete(HELLO)
    assert naps[0] == 7 and naps[1] == 120 and all(0 <= nap < 2 for nap in naps[2:])


def test_a_server_that_never_recovers(server, naps):
    server.script = [Step(body=b"nonsense")]
    with pytest.raises(CallFailed, match="no chat completion") as failed:
        client(server).complete(HELLO)
    assert len(server.asked) == 6 and not failed.value.unreachable


@pytest.mark.parametrize("step", [Step(wait_s=5), Step(body=completion("hi"), drip_s=0.01)], ids=str)
def test_slow_servers_are_left_after_the_limit(server, naps, monkeypatch, step):
    monkeypatch.setattr("bench.chat.CALL_ATTEMPTS", 1)
    server.script = [step]
    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"no reply within|not ended after"):
        client(server, timeout_s=0.3).complete(HELLO)
    assert time.monotonic() - started < 4


def test_an_endless_reply_is_left(server, naps, monkeypatch):
    monkeypatch.setattr("bench.chat.MAX_REPLY_BYTES", 1000)
    server.script = [Step(body=completion("hi" * 1000))]
    with pytest.raises(CallFailed, match="more than 1,000 bytes"):
        client(server).complete(HELLO)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_fails_alone(server, naps, status):
    server.script = [status]
    with pytest.raises(CallFailed):
        client(server).complete(HELLO)
    assert len(server.asked) == 1 and not naps


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_an_error_of_all_requests(server, naps, status):
    server.script = [status]
    with pytest.raises(BenchError, match="the endpoint refuses") as error:
        client(server).complete(HELLO)
    assert not isinstance(error.value, CallFailed) and "k" not in str(error.value).split()


def test_no_connection(naps):
    with pytest.raises(CallFailed, match="no connection") as failed:
        ChatClient(Endpoint(base_url="http://127.0.0.1:9/v1", model="m", api_key="k")).complete(HELLO)
    assert failed.value.unreachable and len(naps) == 5


def test_the_endpoint_from_options_and_environment(monkeypatch):
    for name in ("GENRECAL_JUDGE_BASE_URL", "GENRECAL_JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert endpoint_from("m") is None
    with pytest.raises(BenchError, match="no API key"):
        endpoint_from("m", "http://here")
    assert endpoint_from("m", "http://here", needs_key=False).api_key == ""
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    monkeypatch.setenv("GENRECAL_JUDGE_BASE_URL", "http://there")
    assert endpoint_from("m") == Endpoint(base_url="http://there", model="m", api_key="one")
