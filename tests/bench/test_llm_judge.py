"""The LLM judge against a real HTTP endpoint on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from bench.judge import JudgeItem
from bench.llm_judge import Endpoint, LLMJudge, endpoint_from, parse_grade, read_prompt
from genrecal.core.errors import BenchError

ITEM = JudgeItem(question="How many?", reference="2<AND>3", reply="two")


@dataclass
class Server:
    """Replies in turn: a text, or an HTTP status to fail with."""

    url: str = ""
    script: list[str | int] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)


@pytest.fixture
def server():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            state.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            step = state.script.pop(0) if len(state.script) > 1 else state.script[0]
            status = step if isinstance(step, int) else 200
            message = {"role": "assistant", "content": step}
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            }
            data = json.dumps(body if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield state
        http.shutdown()


def judge(server, folder, **options):
    endpoint = Endpoint(base_url=server.url, model="judge-1", api_key="k")
    return LLMJudge(endpoint, folder / "judge.jsonl", **options)


def test_a_grade_and_what_was_asked(server, tmp_path):
    server.script = ["0.7"]
    (grade,) = judge(server, tmp_path, prompt="INSTRUCTION\n").grade([ITEM], run=0)
    assert grade.score == 0.7
    (asked,) = server.asked
    assert asked["messages"] == [{"role": "user", "content": "INSTRUCTION\n\nHow many? | 2 <AND> 3 | two | "}]
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("judge-1", 3, 0)
    assert "k" not in (tmp_path / "judge.jsonl").read_text().split('"')


def test_replies_are_replayed(server, tmp_path):
    server.script = ["0.7", "0.1"]
    judge(server, tmp_path).grade([ITEM], run=0)
    again = judge(server, tmp_path, replay_only=True)
    assert again.grade([ITEM], run=0)[0].score == 0.7
    assert again.grade([ITEM], run=1)[0].score is None  # another run is another question
    assert len(server.asked) == 1
    assert judge(server, tmp_path).grade([ITEM], run=1)[0].score == 0.1


def test_what_is_no_grade_is_asked_again_with_more_heat(server, tmp_path):
    server.script = ["well", "1.5", "0.4"]
    assert judge(server, tmp_path).grade([ITEM], run=0)[0].score == 0.4
    assert [asked["temperature"] for asked in server.asked] == [0, 0, 0.5]
    assert server.asked[1]["messages"][0]["content"].endswith("(digit): ")


def test_a_judge_that_never_grades_gives_no_zero(server, tmp_path):
    server.script = ["I cannot say"]
    (grade,) = judge(server, tmp_path).grade([ITEM], run=0)
    assert grade.score is None and "I cannot say" in grade.reason
    assert len(server.asked) == 5


def test_passing_failures_are_tried_again(server, tmp_path):
    server.script = [500, 429, "1.0"]
    assert judge(server, tmp_path).grade([ITEM], run=0)[0].score == 1.0


def test_a_refused_item_stays_ungraded_and_is_not_cached(server, tmp_path):
    server.script = [400]
    (grade,) = judge(server, tmp_path).grade([ITEM], run=0)
    assert grade.score is None and "call failed" in grade.reason
    assert not (tmp_path / "judge.jsonl").exists()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run(server, tmp_path, status):
    server.script = [status]
    with pytest.raises(BenchError, match="the judge refuses"):
        judge(server, tmp_path).grade([ITEM], run=0)


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("1", 1.0),
        ("0", 0.0),
        ("1.0", 1.0),
        (" 0.5\n", 0.5),
        (".5", 0.5),
        ("0.5 because", 0.5),
        ("0.5/1", None),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("grade 0.5", None),
    ],
)
def test_grades_are_read_strictly(reply, grade):
    assert parse_grade(reply) == grade


def test_the_endpoint_from_options_and_environment(monkeypatch):
    for name in ("GENRECAL_JUDGE_BASE_URL", "GENRECAL_JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert endpoint_from("m") is None
    with pytest.raises(BenchError, match="no API key"):
        endpoint_from("m", "http://here")
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    monkeypatch.setenv("GENRECAL_JUDGE_BASE_URL", "http://there")
    assert endpoint_from("m") == Endpoint(base_url="http://there", model="m", api_key="one")


def test_prompt_files(tmp_path):
    (tmp_path / "p").write_text("Grade.\n")
    assert read_prompt(tmp_path / "p") == "Grade.\n"
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(BenchError):
            read_prompt(tmp_path / name)


def test_an_endpoint_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    judge = LLMJudge(
        Endpoint(base_url="http://127.0.0.1:9/v1", model="m", api_key="k"), tmp_path / "judge.jsonl"
    )
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9/v1: the judge answers nothing \(no connection"):
        judge.grade([JudgeItem(question="q", reference="a", reply="b")], run=0)
