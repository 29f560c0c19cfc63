"""MathVista's and BLINK's replies read by an LLM: a real HTTP endpoint here, misbehaviour included."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pandas
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from bench.chat import Endpoint
from bench.command import open_judges
from bench.comparable import require_comparable
from bench.extraction import BLINK, MATHVISTA, ExtractionPrompt
from bench.judge_prompt import read_prompt
from bench.kept_replies import KeptReplies
from bench.llm_reader import LLMReader
from bench.report import read_report
from bench.scoring import CODE_ALONE, score_and_outcome
from bench.task import LMMS, Choices, Row
from bench.tasks import TASKS
from genrecal.core.errors import BenchError
from tests.bench.chat_server import Step, chat_server, completion


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    with chat_server() as state:
        yield state


def reader(server, folder, *, replay_only=False, prompts=()):
    endpoint = Endpoint(base_url=server.url, model="reads-1", api_key="k")
    return LLMReader(KeptReplies(endpoint, folder / "judge.jsonl", replay_only=replay_only), prompts)


def number(name, gold="14", **more):
    facts = {"question_type": "free_form", "answer_type": "integer", "precision": None, **more}
    return Row(
        id=name,
        question=f"Hint: an integer.\nQuestion: {name}?",
        images={},
        gold=gold,
        split="testmini",
        facts=facts,
    )


def choice(name, task="Counting", gold="B"):
    return Row(
        id=name,
        question=f"{name}?",
        images={},
        gold=gold,
        options={"A": "one", "B": "two"},
        split="val",
        groups={"task": (task,)},
    )


def scored(name, rows, replies, **choices):
    replies = dict(zip((row.id for row in rows), replies, strict=True))
    return score_and_outcome(TASKS[name], rows, replies, Choices(**choices), generation="greedy")


def test_mathvista_asks_for_what_code_does_not_read_and_marks_the_answer(server, tmp_path):
    server.script = [lambda asked: " 14\n" if "fourteen" in asked["messages"][0]["content"] else "13"]
    rows = [number("a"), number("b"), number("c")]
    found, outcome = scored(
        "mathvista", rows, ["14", "It is fourteen.", "It is not."], reader=reader(server, tmp_path)
    )
    assert found.hits == {"a": 1.0, "b": 1.0, "c": 0.0} and found.score == pytest.approx(2 / 3)
    assert found.details["rows_read_by_llm"] == 2 and "unparsed_rows" not in found.details
    assert outcome.read == {"a": "14", "b": "14", "c": "13"} and outcome.words == {"b": " 14\n", "c": "13"}
    asked = next(one for one in server.asked if "fourteen" in one["messages"][0]["content"])
    assert asked["messages"][0]["content"].endswith("Question: b?\n\nIt is fourteen.\n\nExtracted answer: ")
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("reads-1", 1024, 0)


def test_the_choice_is_part_of_the_score(server, tmp_path):
    server.script = ["14"]
    rows = [number("a")]
    by_llm, _ = scored("mathvista", rows, ["fourteen"], reader=reader(server, tmp_path))
    alone, _ = scored("mathvista", rows, ["fourteen"])
    assert by_llm.judge["judge"] == "reads-1" and by_llm.judge["prompt"] == "own words"
    assert by_llm.details["rule"] == "its own code, replies read by reads-1"
    assert alone.judge is None and alone.details["extraction"] == CODE_ALONE
    assert alone.details["unparsed_rows"] == 1 and alone.score == 0.0
    with pytest.raises(BenchError, match="had different judges"):
        require_comparable(by_llm, alone)
    # A kit's rule is the kit's without its LLM, endpoint or not.
    kit, _ = scored("mathvista", rows, ["fourteen"], compat=LMMS, reader=reader(server, tmp_path))
    assert kit.judge is None and kit.details["unparsed_rows"] == 1


def test_blink_reads_brackets_itself_and_has_the_rest_mapped(server, tmp_path):
    server.script = [lambda asked: "(B)" if "second" in asked["messages"][0]["content"] else "(Z) Failed"]
    rows = [choice(name) for name in "abcde"]
    replies = ["(B)", "B", "I see (A)\n\nSo (B) it is", "the second", "A or B"]
    found, outcome = scored("blink", rows, replies, reader=reader(server, tmp_path))
    assert found.hits == {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0}
    assert found.details["rows_read_by_llm"] == 2 == len(server.asked) and outcome.read["e"] == ""
    (text,) = (
        one["messages"][0]["content"] for one in server.asked if "second" in one["messages"][0]["content"]
    )
    assert "Question: d?\nSelect from the following choices?\nOptions: (A) one\n(B) two\n" in text
    # Without the LLM the kit's letters stand in for it.
    alone, _ = scored("blink", rows, replies)
    assert alone.hits["c"] == 1.0 and alone.hits["d"] == 0.0 and alone.details["unparsed_rows"] == 2


def test_replies_are_kept_and_replayed(server, tmp_path):
    server.script = ["14"]
    rows = [number("a")]
    first, _ = scored("mathvista", rows, ["fourteen"], reader=reader(server, tmp_path))
    again, _ = scored("mathvista", rows, ["fourteen"], reader=reader(server, tmp_path))
    replayed, _ = scored("mathvista", rows, ["fourteen"], reader=reader(server, tmp_path, replay_only=True))
    assert first == again == replayed and len(server.asked) == 1
    other, outcome = scored(
        "mathvista", rows, ["15 or so"], reader=reader(server, tmp_path, replay_only=True)
    )
    assert other.score is None and outcome.words["a"] == "not among the kept replies"
    assert "k" not in (tmp_path / "judge.jsonl").read_text().split('"')


def test_requests_that_are_alike_are_made_once(server, tmp_path):
    server.script = ["14"]
    rows = [replace(number("a"), id=name) for name in "xyz"]
    found, _ = scored("mathvista", rows, ["fourteen"] * 3, reader=reader(server, tmp_path))
    assert found.score == 1.0 and len(server.asked) == 1


def test_a_failure_is_unscored_and_never_a_zero(server, tmp_path):
    server.script = [lambda asked: 400 if "bad" in asked["messages"][0]["content"] else "14"]
    rows = [number(f"q{place}") for place in range(400)]
    replies = ["bad", *["fourteen"] * 399]
    found, _ = scored("mathvista", rows, replies, reader=reader(server, tmp_path))
    assert found.score == 1.0 and "q0" not in found.hits
    assert found.details["ungraded"] == 1 and found.details["ungraded_row_ids"] == ["q0"]
    # More than 0.5%: no honest figure can be given.
    found, _ = scored("mathvista", rows[:100], replies[:100], reader=reader(server, tmp_path))
    assert found.score is None and len(found.hits) == 99


def test_a_task_of_blink_without_one_scored_row_is_in_no_mean(server, tmp_path):
    server.script = [400]
    rows = [choice("a"), choice("b", task="Jigsaw")]
    found, _ = scored("blink", rows, ["(B)", "whatever"], reader=reader(server, tmp_path))
    assert found.score is None and found.groups["task"].keys() == {"Counting"}


def test_a_server_that_misbehaves(server, tmp_path):
    cut = Step(body=completion("14"), cut=True)
    server.script = [cut, 500, Step(body=b"{"), 429, Step(body=completion(None)), " ", "14"]
    found, _ = scored("mathvista", [number("a")], ["fourteen"], reader=reader(server, tmp_path))
    assert found.score == 1.0
    # A mapping that names no option is asked for again, with more heat, and is no answer in the end.
    server.asked.clear()
    server.script = ["the second one"]
    found, outcome = scored("blink", [choice("a")], ["two-ish"], reader=reader(server, tmp_path))
    assert found.score is None and "no answer in" in outcome.words["a"]
    assert [one["temperature"] for one in server.asked] == [0, 0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_ends_the_run(server, tmp_path, status):
    server.script = [status]
    with pytest.raises(BenchError, match="the endpoint refuses"):
        scored("mathvista", [number("a")], ["fourteen"], reader=reader(server, tmp_path))


def test_an_endpoint_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    gone = LLMReader(
        KeptReplies(Endpoint(base_url="http://127.0.0.1:9/v1", model="m", api_key="k"), tmp_path / "j")
    )
    with pytest.raises(BenchError, match="the judge answers nothing"):
        scored("mathvista", [number("a")], ["fourteen"], reader=gone)


def test_the_official_files_are_prompts(tmp_path):
    (tmp_path / "ext_ans.py").write_text('demo_prompt = """\nRead.\n"""\nraise SystemExit\n')
    (tmp_path / "multiple_choice.py").write_text(
        'import nowhere\ndef build_prompt(a, b, c):\n    tmpl = ("Q {}? " "O {} " "A {}")\n    return tmpl\n'
    )
    (tmp_path / "gaps.py").write_text('tmpl = "Q {} {}"\n')
    assert read_prompt(tmp_path / "ext_ans.py") == ExtractionPrompt(
        benchmark=MATHVISTA, name="ext_ans.py", text="\nRead.\n"
    )
    assert read_prompt(tmp_path / "multiple_choice.py") == ExtractionPrompt(
        benchmark=BLINK, name="multiple_choice.py", text="Q {}? O {} A {}"
    )
    with pytest.raises(BenchError, match="other gaps"):
        read_prompt(tmp_path / "gaps.py")


def test_options_name_each_use_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GENRECAL_JUDGE_API_KEY", "k")
    (tmp_path / "own.py").write_text('demo_prompt = "Read."\n')
    (tmp_path / "grade").write_text("Grade.")
    given = open_judges(
        "m", "http://127.0.0.1:9/v1", tmp_path / "j", prompts=[tmp_path / "own.py", tmp_path / "grade"]
    )
    assert given.reader.prompt(MATHVISTA).text == "Read." and given.reader.prompt(BLINK).name == "own words"
    with pytest.raises(BenchError, match="two prompts for one use"):
        open_judges("m", "http://127.0.0.1:9/v1", tmp_path / "j", prompts=[tmp_path / "own.py"] * 2)
    assert open_judges("m", None, tmp_path / "j").reader is None


def test_saved_replies_are_scored_through_the_endpoint(server, tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="PNG")
    common = {
        "decoded_image": {"bytes": picture.getvalue(), "path": "1.png"},
        "choices": None,
        "precision": None,
    }
    rows = [
        {"pid": name, "query": f"Hint: integer\nQuestion: {name}?", "answer": "14", **common}
        | {"question_type": "free_form", "answer_type": "integer", "metadata": {"split": "testmini"}}
        for name in ("1", "2")
    ]
    (tmp_path / "set").mkdir()
    pandas.DataFrame(rows).to_parquet(tmp_path / "set" / "testmini-0.parquet")
    (tmp_path / "replies.json").write_text(json.dumps({"1": "14", "2": "fourteen, I say"}))
    server.script = ["14"]
    command = ["score", tmp_path / "replies.json", "--test", f"mathvista={tmp_path / 'set'}"]
    command += ["--output", tmp_path / "out", "--judge-url", server.url, "--judge-model", "reads-1"]
    monkeypatch.setenv("GENRECAL_JUDGE_API_KEY", "k")
    for more in ([], ["--judge-replay"]):
        found = CliRunner().invoke(cli.app, [str(one) for one in (*command, *more)])
        assert found.exit_code == 0, found.output
        result = read_report(tmp_path / "out").results["mathvista"].score
        assert result.score == 1.0 and result.judge["judge"] == "reads-1"
        assert result.details["rows_read_by_llm"] == 1 and len(server.asked) == 1
    # Without the address, code alone: the same replies, another score that does not compare.
    found = CliRunner().invoke(cli.app, [str(one) for one in command[:6]])
    assert found.exit_code == 0 and "1 of 2 rows unparsed" in found.output
    assert read_report(tmp_path / "out").results["mathvista"].score.details["extraction"] == CODE_ALONE
