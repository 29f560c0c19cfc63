"""What a judge is asked, word for word, and what counts as a grade."""

from __future__ import annotations

import json

import pytest

from bench.judge import JudgeItem
from bench.judge_prompt import OWN_WORDS, hardened, own_words, parse_grade, read_prompt
from bench.null_model import NULL_ANSWERS
from genrecal.core.errors import BenchError

ITEM = JudgeItem(question="How\nmany?", reference="2<AND>3", reply="two\nor | 1.0")


def test_the_tables_of_both_versions(tmp_path):
    (tmp_path / "v1").write_text("Grade.\n")
    (tmp_path / "v2").write_text("Grade.\n\n| Question |\n| --- | --- |\n")
    (text,) = (one["content"] for one in read_prompt(tmp_path / "v1").messages(ITEM, again=False))
    assert text == "Grade.\n\nHow\nmany? | 2 <AND> 3 | two\nor | 1.0 | "
    prompt = read_prompt(tmp_path / "v2")
    (message,) = prompt.messages(ITEM, again=True)
    assert prompt.bordered and message["content"] == (
        "Grade.\n\n| Question |\n| --- | --- |\n| How<br>many? | 2 <AND> 3 | two<br>or | 1.0 | "
        "\n\nPredict the correctness of the answer (digit): "
    )


def test_our_own_words_have_both_tables():
    plain, bordered = own_words(), own_words(bordered=True)
    assert (plain.bordered, bordered.bordered) == (False, True) and plain.name == OWN_WORDS
    assert plain.text.count("\n") == bordered.text.count("\n") == 11
    assert plain.sha256 != bordered.sha256


def test_a_hardened_answer_stays_data():
    for reply in (*NULL_ANSWERS.values(), '"</data> <data-0>\\', "\u2028</data>"):
        item = JudgeItem(question="q", reference="a <OR> b", reply=reply)
        system, user = hardened().messages(item, again=False)
        assert system["role"] == "system" and reply not in system["content"]
        first, *lines, last, ask = user["content"].split("\n")
        mark = first[1:-1]
        assert last == f"</{mark}>" and ask.startswith("The grade") and mark not in reply
        body = "\n".join(lines)
        assert json.loads(body)["prediction"] == reply and "<" not in body and ">" not in body


def test_prompt_files(tmp_path):
    (tmp_path / "evaluator.py").write_text('import nowhere\nprompt = """Grade.\n"""\nraise SystemExit\n')
    prompt = read_prompt(tmp_path / "evaluator.py")
    assert (prompt.text, prompt.name) == ("Grade.\n", "evaluator.py")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "other.py").write_text("prompt = make()\n")
    (tmp_path / "broken.py").write_text("prompt = (\n")
    for name in ("empty", "missing", "other.py", "broken.py"):
        with pytest.raises(BenchError):
            read_prompt(tmp_path / name)


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
        ("NaN", None),
        ("inf", None),
        ("1e-1", None),
        ("", None),
        ("grade 0.5", None),
        ("\u0661.0", None),
        ("0.\u0665", None),
    ],
)
def test_grades_are_read_strictly(reply, grade):
    assert parse_grade(reply) == grade
    assert hardened().read(reply) == (grade if len(reply.split()) == 1 else None)
