import random
import re

import pytest

from bench.rules.mmmu_parse import parse_choice
from bench.rules.option_letters import infer_option
from genrecal.core.types import DOMAINS
from genrecal.demo.drawings import KINDS, Item, Layout, compose
from genrecal.demo.prompts import FORMS, ask, choices_of, mmb_prompt, mmmu_choice_prompt, mmmu_open_prompt
from genrecal.demo.questions import questions_about
from genrecal.demo.skills import SKILLS

ASKED_KINDS = [kind for kind in KINDS if kind != "mosaic"]


def shape(name, color, row, column):
    return Item(kind="shape", name=name, color=color, row=row, column=column)


def replies(layout, text):
    """The true reply to `text`: some questions are asked only now and then."""
    for seed in range(100):
        for question in questions_about(layout, random.Random(seed)):
            if question.text == text:
                return question.truth.short, question.truth.explained
    raise AssertionError(f"nobody asks '{text}'")


def test_scene_is_counted_and_described_in_reading_order():
    layout = Layout(
        kind="scene",
        columns=3,
        items=(shape("star", "red", 0, 2), shape("circle", "blue", 1, 0), shape("star", "black", 2, 2)),
    )
    assert replies(layout, "Describe the image.") == ("", "red star, blue circle, black star.")
    assert replies(layout, "How many stars are there?") == ("2", "There are 2 stars.")
    assert replies(layout, "How many circles are there?") == ("1", "There is 1 circle.")
    assert replies(layout, "How many shapes are there?")[0] == "3"
    assert replies(layout, "Is there a square?") == ("no", "No, there is no square.")
    assert replies(layout, "Is there a star?") == ("yes", "Yes, there is a star.")


def test_bars_are_compared():
    bars = tuple(
        Item(kind="bar", name="bar", row=0, column=column, color=color, value=value)
        for column, (color, value) in enumerate([("red", 2), ("green", 6), ("blue", 1)])
    )
    layout = Layout(kind="bars", columns=3, items=bars)
    assert replies(layout, "Which bar is highest?") == ("green", "red 2, green 6, blue 1, so green.")
    assert replies(layout, "Which bar is lowest?") == ("blue", "red 2, green 6, blue 1, so blue.")
    assert replies(layout, "How high is the red bar?") == ("2", "The red bar is 2.")
    assert replies(layout, "Describe the chart.") == ("", "red 2, green 6, blue 1.")


def test_digits_are_read_and_added():
    def digits(kind, *names):
        items = (Item(kind="digit", name=name, row=1, column=place) for place, name in enumerate(names))
        return Layout(kind=kind, columns=3, items=tuple(items))

    assert replies(digits("sum", "3", "4"), "What is the sum?") == ("7", "3 plus 4 is 7.")
    assert replies(digits("sum", "3", "4"), "Which digit is higher?")[0] == "4"
    assert replies(digits("digit", "6"), "Is it even or odd?") == ("even", "It is 6, so even.")
    assert replies(digits("number", "6", "0", "2"), "Which number is written?")[0] == "602"
    assert replies(digits("number", "6", "0", "2"), "Which digit is last?")[0] == "2"


def test_shapes_letters_and_comparisons():
    assert replies(
        Layout(kind="single", columns=3, items=(shape("triangle", "yellow", 0, 0),)),
        "How many sides are there?",
    ) == (
        "3",
        "It is a triangle, so 3.",
    )
    letter = Item(kind="letter", name="K", row=0, column=0)
    assert replies(Layout(kind="letter", columns=3, items=(letter,)), "Which letter is next?")[0] == "L"
    two = (shape("star", "red", 0, 0), shape("star", "red", 0, 1), shape("square", "red", 0, 2))
    for text in ("Are there more stars or squares?", "Are there more squares or stars?"):
        short, explained = replies(Layout(kind="compare", columns=3, items=two), text)
        assert short == "stars"
        assert "2 stars" in explained and "1 square" in explained and explained.endswith("so stars.")


@pytest.mark.parametrize("kind", ASKED_KINDS)
def test_every_question_has_one_truth(kind):
    rng = random.Random(kind)
    for _ in range(150):
        layout = compose(kind, rng, wide=rng.random() < 0.4, split="test")
        for question in questions_about(layout, rng):
            assert SKILLS[question.skill].domain in DOMAINS
            assert question.wrong
            if question.has_short:
                shorts = [question.truth.short, *(reply.short for reply in question.wrong)]
                assert len(set(shorts)) == len(shorts) and all(shorts), (question.text, shorts)
            assert all(reply.explained != question.truth.explained for reply in question.wrong)


@pytest.mark.parametrize("form", FORMS)
def test_the_answer_is_the_option_that_is_true(form):
    rng = random.Random(form)
    for _ in range(300):
        kind = rng.choice(ASKED_KINDS)
        questions = questions_about(compose(kind, rng, wide=False, split="test"), rng)
        question = next(question for question in questions if question.has_short)
        asked = ask(question, form, rng)
        assert asked.answer != asked.wrong_answer
        if form in ("bare", "mmmu_open"):
            assert asked.answer in (question.truth.short, question.truth.explained)
        else:
            for answer in (asked.answer, asked.wrong_answer):
                option = answer.removeprefix("Of these options the answer is ").removesuffix(".")
                assert re.search(rf"\n\(?[A-D][.)] {option}\n", f"{asked.prompt}\n")
                assert (option == question.truth.short) == (answer == asked.answer)


@pytest.mark.parametrize("form", ["mmb", "mmmu_choice"])
def test_the_official_parsers_take_the_answers(form):
    rng = random.Random(form)
    for _ in range(500):
        kind = rng.choice(ASKED_KINDS)
        questions = questions_about(compose(kind, rng, wide=False, split="test"), rng)
        asked = ask(next(question for question in questions if question.has_short), form, rng)
        options = dict(re.findall(r"\n\(?([A-D])[.)] (.+)", asked.prompt))
        parse = infer_option if form == "mmb" else parse_choice
        found = {reply: parse(reply, options) for reply in (asked.answer, asked.wrong_answer)}
        assert options[found[asked.answer]] in asked.answer
        assert None not in found.values() and len(set(found.values())) == 2


def test_options_hold_the_truth_once():
    rng = random.Random(0)
    for _ in range(200):
        layout = compose("single", rng, wide=False, split="test")
        question = questions_about(layout, rng)[0]
        options, right = choices_of(question, rng)
        assert 2 <= len(options) <= 4
        assert options.count(question.truth.short) == 1
        assert options[right] == question.truth.short


def test_prompts_are_the_benchmarks_own():
    assert mmb_prompt("How many?", ["1", "2"], "Count.") == (
        "Hint: Count.\nQuestion: How many?\nOptions:\nA. 1\nB. 2\n"
        "Please select the correct answer from the options above. \n"
    )
    assert mmmu_choice_prompt("How many?", ["1", "2"]) == (
        "How many?\n\n(A) 1\n(B) 2\n\nAnswer with the option's letter from the given choices directly."
    )
    assert mmmu_open_prompt("How many?") == (
        "How many?\n\nAnswer the question using a single word or phrase."
    )
