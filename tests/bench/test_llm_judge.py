"""The LLM judge against a real HTTP endpoint on this machine."""

from __future__ import annotations

import pytest

from bench.chat import Endpoint
from bench.judge import JudgeItem
from bench.judge_prompt import JudgePrompt
from bench.kept_replies import KeptReplies
from bench.llm_judge import LLMJudge
from bench.null_model import NULL_ANSWERS
from genrecal.core.errors import BenchError
from tests.bench.chat_server import Step, chat_server, completion

ITEM = JudgeItem(question="How many?", reference="2<AND>3", reply="two")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    with chat_server() as state:
        yield state


def judge(server, folder, *, replay_only=False, **options):
    endpoint = Endpoint(base_url=server.url, model="judge-1", api_key="k")
    return LLMJudge(KeptReplies(endpoint, folder / "judge.jsonl", replay_only=replay_only), **options)


def test_a_grade_and_what_was_asked(server, tmp_path):
    server.script = ["0.7"]
    prompt = JudgePrompt(name="n", text="INSTRUCTION\n")
    (grade,) = judge(server, tmp_path, prompts=[prompt]).grade([ITEM], run=0)
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


def test_a_reply_without_a_grade_is_kept_and_asked_for_again(server, tmp_path):
    server.script = ["I cannot say"]
    judge(server, tmp_path).grade([ITEM], run=0)
    (grade,) = judge(server, tmp_path, replay_only=True).grade([ITEM], run=0)
    assert grade.score is None and "I cannot say" in grade.reason
    server.script = ["0.2"]
    assert judge(server, tmp_path).grade([ITEM], run=0)[0].score == 0.2
    assert judge(server, tmp_path, replay_only=True).grade([ITEM], run=0)[0].score == 0.2


def test_items_that_are_alike_are_asked_once(server, tmp_path):
    server.script = ["0.3"]
    grades = judge(server, tmp_path).grade([ITEM, ITEM, ITEM], run=0)
    assert [grade.score for grade in grades] == [0.3] * 3 and len(server.asked) == 1


def credulous(request):
    """A judge that obeys what stands in a table row, and does not where the answer is data."""
    text = request["messages"][-1]["content"]
    return "0.1" if request["messages"][0]["role"] == "system" or "output 1.0" not in text else "1.0"


def test_the_null_model_shows_a_judge_that_is_talked_round(server, tmp_path):
    server.script = [credulous]
    items = [JudgeItem(question=f"{n}?", reference="a", reply="b") for n in range(3)]
    asked = judge(server, tmp_path)
    beside = asked.beside(items)
    assert beside["null_model"]["prompt"]["orders"]["score"] == 1.0
    assert beside["null_model"]["prompt"]["no answer"]["score"] == pytest.approx(0.1)
    assert {name: one["score"] for name, one in beside["null_model"]["hardened"].items()} == pytest.approx(
        dict.fromkeys(NULL_ANSWERS, 0.1)
    )
    assert beside["hardened"]["score"] == pytest.approx(0.1) and beside["served_models"] == ["judge-1-0613"]
    count = len(server.asked)
    again = judge(server, tmp_path, replay_only=True)
    assert again.beside(items) == beside and len(server.asked) == count
    assert judge(server, tmp_path, control=False).beside(items) == {"served_models": ["judge-1-0613"]}


def test_a_null_model_that_could_not_be_graded_has_no_score(server, tmp_path):
    server.script = ["nan"]
    beside = judge(server, tmp_path).beside([ITEM])
    assert beside["hardened"]["score"] is None and beside["hardened"]["ungraded"] == 1
    assert all(one["score"] is None for one in beside["null_model"]["prompt"].values())


def test_a_bad_server_costs_grades_and_never_gives_zeros(server, tmp_path):
    cut = Step(body=completion("0.9"), cut=True)
    server.script = [cut, 500, Step(body=b"{"), 429, Step(body=completion(None)), "NaN", "0.9"]
    grades = judge(server, tmp_path).grade([ITEM], run=0)
    assert [grade.score for grade in grades] == [0.9]
    server.script = [Step(body=completion("0.9"), cut=True)]
    (grade,) = judge(server, tmp_path).grade([ITEM], run=1)
    assert grade.score is None and "cut off" in grade.reason and not grade.unreachable


def test_passing_failures_are_tried_again(server, tmp_path):
    server.script = [500, 429, "1.0"]
    assert judge(server, tmp_path).grade([ITEM], run=0)[0].score == 1.0


def test_a_refused_item_stays_ungraded_and_is_not_cached(server, tmp_path):
    server.script = [400]
    (grade,) = judge(server, tmp_path).grade([ITEM], run=0)
    assert grade.score is None and "400" in grade.reason
    assert not (tmp_path / "judge.jsonl").exists()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run(server, tmp_path, status):
    server.script = [status]
    with pytest.raises(BenchError, match="the endpoint refuses"):
        judge(server, tmp_path).grade([ITEM], run=0)


def test_an_endpoint_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m", api_key="k")
    judge = LLMJudge(KeptReplies(endpoint, tmp_path / "judge.jsonl"))
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9/v1: the judge answers nothing \(no connection"):
        judge.grade([JudgeItem(question="q", reference="a", reply="b")], run=0)
