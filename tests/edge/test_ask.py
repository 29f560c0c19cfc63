"""`genrecal ask` as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from edge.ask import read_arguments
from edge.conversation import Conversation
from edge.model import EdgeModel
from genrecal.core.errors import ConfigError
from tests.edge.conftest import noise

runner = CliRunner()
REPOSITORY = Path(__file__).parents[2]
IMAGE, OTHER = noise(80, 60), noise(40, 70)
FIRST, SECOND = "what is in the picture?", "read the text."


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, image in zip(paths, (IMAGE, OTHER), strict=True):
        image.save(path)
    return list(map(str, paths))


def said(*arguments: str | Path, typed: str | None = None) -> str:
    result = runner.invoke(cli.app, ["ask", *map(str, arguments), "--threads", "1"], input=typed)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_one_question(build_folder: Path, edge_model: EdgeModel, pictures: list[str]) -> None:
    expected = edge_model.answer((IMAGE, FIRST), max_new_tokens=9).text
    assert said(build_folder, pictures[0], FIRST, "--max-new-tokens", "9") == expected + "\n"
    expected = edge_model.answer((IMAGE, OTHER, FIRST), max_new_tokens=9).text
    assert said(build_folder, *pictures, FIRST, "--max-new-tokens", "9") == expected + "\n"
    expected = edge_model.answer((FIRST,), max_new_tokens=9).text
    assert said(build_folder, FIRST, "--max-new-tokens", "9") == expected + "\n"


def test_stop(build_folder: Path, edge_model: EdgeModel, pictures: list[str]) -> None:
    """The answer ends before the text that comes first."""
    options = ("--max-new-tokens", "9", "--temperature", "0")
    whole = said(build_folder, pictures[0], FIRST, *options).removesuffix("\n")
    first, second = whole[len(whole) // 3 :][:3], whole[len(whole) // 2 :][:3]
    drawn = {"max_new_tokens": 9, "do_sample": False}
    expected = edge_model.answer((IMAGE, FIRST), stop_strings=(second, first), **drawn).text
    found = said(build_folder, pictures[0], FIRST, *options, "--stop", second, "--stop", first)
    assert found == expected + "\n" and len(expected) < len(whole)


def test_settings_out_of_range_are_one_line(build_folder: Path) -> None:
    for options, message in ((("--top-p", "0"), "'top_p' is 0.0"), (("--stop", ""), "'stop_strings'")):
        result = runner.invoke(cli.app, ["ask", str(build_folder), FIRST, *options])
        assert result.exit_code == 2 and message in result.stderr and "\n" not in result.stderr.strip()


def test_temperature(build_folder: Path, edge_model: EdgeModel, pictures: list[str]) -> None:
    drawn = {"do_sample": True, "temperature": 2.5, "seed": 4}
    expected = edge_model.answer((IMAGE, FIRST), max_new_tokens=9, **drawn).text
    options = ("--max-new-tokens", "9", "--temperature", "2.5", "--seed", "4")
    assert said(build_folder, pictures[0], FIRST, *options) == expected + "\n"
    narrow = edge_model.answer((IMAGE, FIRST), max_new_tokens=9, top_p=0.05, **drawn).text
    assert (
        said(build_folder, pictures[0], FIRST, *options, "--top-p", "0.05")
        == narrow + "\n"
        != expected + "\n"
    )
    greedy = edge_model.answer((IMAGE, FIRST), max_new_tokens=9, do_sample=False).text
    assert said(build_folder, pictures[0], FIRST, *options[:2], "--temperature", "0") == greedy + "\n"


def test_json_has_the_answer_and_its_times(
    build_folder: Path, edge_model: EdgeModel, pictures: list[str]
) -> None:
    expected = edge_model.answer((IMAGE, FIRST), max_new_tokens=9)
    (line,) = said(build_folder, pictures[0], FIRST, "--json", "--max-new-tokens", "9").splitlines()
    found = json.loads(line)
    assert found["question"] == FIRST and found["answer"] == expected.text
    assert found["prompt_tokens"] == expected.prompt_tokens and found["reused_tokens"] == 0
    assert found["answer_tokens"] == len(expected.token_ids) and found["stop"] == expected.stop
    parts = found["prepare_s"] + found["vision_s"] + found["prefill_s"]
    assert 0 < parts <= found["first_token_s"] and found["decode_s"] > 0 and found["tokens_per_s"] > 0


def test_lines_of_standard_input_are_a_conversation(
    build_folder: Path, edge_model: EdgeModel, pictures: list[str]
) -> None:
    chat = Conversation(edge_model)
    expected = [chat.ask(IMAGE, FIRST, max_new_tokens=9), chat.ask(SECOND, max_new_tokens=9)]
    out = said(build_folder, pictures[0], "--max-new-tokens", "9", "--json", typed=f"{FIRST}\n\n{SECOND}\n")
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["answer"] for line in found] == [answer.text for answer in expected]
    assert found[0]["reused_tokens"] == 0 and found[1]["reused_tokens"] > 0


def test_somebody_who_types(build_folder: Path, edge_model: EdgeModel, pictures: list[str]) -> None:
    """On a terminal: a prompt, an answer, a follow-up, and the end of input ends it."""
    leader, follower = pty.openpty()
    program = "from cli import app; app()"
    command = [sys.executable, "-c", program, "ask", str(build_folder), pictures[0], "--max-new-tokens", "9"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.close(follower)
    os.write(leader, f"{FIRST}\n".encode())
    time.sleep(0.1)
    os.write(leader, f"{SECOND}\n".encode())
    time.sleep(0.1)
    os.write(leader, b"\x04")
    out, err = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0, err
    chat = Conversation(edge_model)
    answers = [chat.ask(IMAGE, FIRST, max_new_tokens=9).text, chat.ask(SECOND, max_new_tokens=9).text]
    assert out == f"> {answers[0]}\n> {answers[1]}\n> "


def test_a_question_that_is_too_long_does_not_end_a_conversation(
    build_folder: Path, pictures: list[str]
) -> None:
    typed = f"{FIRST}\n{'word ' * 5000}\n{SECOND}\n"
    result = runner.invoke(
        cli.app, ["ask", str(build_folder), pictures[0], "--json", "--max-new-tokens", "3"], input=typed
    )
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 2
    assert "error: prompt and answer take" in result.stderr


def test_no_question_at_all(build_folder: Path, pictures: list[str]) -> None:
    result = runner.invoke(cli.app, ["ask", str(build_folder), pictures[0]], input="\n")
    assert result.exit_code == ConfigError.exit_code
    assert "the question: there is none. Give it behind the images" in result.stderr


def test_too_little_memory_is_one_line(build_folder: Path, pictures: list[str]) -> None:
    result = runner.invoke(cli.app, ["ask", str(build_folder), pictures[0], FIRST, "--memory", "0.001"])
    assert result.exit_code != 0 and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "images", "question"),
    [
        (["one.png", "what?"], ["one.png"], "what?"),
        (["what?"], [], "what?"),
        (["one.png"], ["one.png"], None),
        (["one.png", "two.JPG"], ["one.png", "two.JPG"], None),
        (["one.png", "is this photo.png or photo.jpg"], ["one.png"], "is this photo.png or photo.jpg"),
        (["one.png", "why? " * 1000], ["one.png"], "why? " * 1000),
    ],
)
def test_which_word_is_the_question(words: list[str], images: list[str], question: str | None) -> None:
    asked = read_arguments(words)
    assert list(map(str, asked.images)) == images and asked.question == question


@pytest.mark.parametrize("question", ["", "  \n", "\udcff"])
def test_words_that_are_no_question(question: str) -> None:
    with pytest.raises(ConfigError, match="the question"):
        read_arguments(["one.png", question])
