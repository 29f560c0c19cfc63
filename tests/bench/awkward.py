"""Rows made to be awkward for scorers, the same each time: what models say, and what no model should.

A row is a plain list, as it is kept in tests/bench/data/official; benchmarks/official/run.py has the
official scorers score them.
"""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

ROWS = 2400  # of each benchmark
PHRASES = json.loads((Path(__file__).parent / "data" / "awkward.json").read_text(encoding="utf-8"))

REPLIES = tuple(PHRASES["replies"])
OPTIONS = tuple(PHRASES["options"])
JOINS = ("", " ", "\n", ". ", ", ", "\n\n")


def choice_rows(seed: int, *, fewest: int = 2, most: int = 6, count: int = ROWS) -> list[list[Any]]:
    """[id, options, gold letter, reply]"""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        options = draw.sample(OPTIONS, draw.randint(fewest, most))
        letters = string.ascii_uppercase[: len(options)]
        rows.append([str(number), options, draw.choice(letters), _reply(draw, options, letters)])
    return rows


def circular_rows(seed: int, *, questions: int = 800) -> list[list[Any]]:
    """[index, options, gold letter, reply] with every rotation; most are right, or no question would be."""
    draw = random.Random(seed)
    rows = []
    for question in range(questions):
        count = draw.randint(2, 4)
        options = draw.sample(
            [one for one in OPTIONS if one not in ("A", "B", "D", "I", "Both A and B")], count
        )
        letters = string.ascii_uppercase[:count]
        gold = draw.randrange(count)
        for turn in range(count):
            turned = options[turn:] + options[:turn]
            letter = letters[(gold - turn) % count]
            likely = draw.random() < 0.85
            shape = draw.choice(
                ("{X}", "{X}.", "({X})", "{X}. {T}", "The answer is {X}.", "{T}", "{x}", "**{X}**")
            )
            right = shape.format(X=letter, x=letter.lower(), T=options[gold])
            reply = right if likely else _reply(draw, turned, letters)
            rows.append([question + turn * 10**6, turned, letter, reply])
    return rows


def mapped_rows(seed: int) -> list[list[Any]]:
    """[id, task, options, gold letter, what an LLM mapped the reply to] of BLINK's fourteen tasks."""
    draw = random.Random(seed)
    shapes = ("({X})",) * 30 + ("(Z)", "{X}", "({X}) ", "(z)", "({X}) {T}", "{X}.", "(Z) Failed")
    rows = []
    for number in range(ROWS):
        options = draw.sample(OPTIONS[:20], draw.randint(2, 4))
        letters = string.ascii_uppercase[: len(options)]
        # Uneven tasks, or the mean of tasks would be the mean of rows.
        task = BLINK_TASKS[min(int(draw.random() ** 2 * len(BLINK_TASKS)), len(BLINK_TASKS) - 1)]
        said = draw.choice(shapes).format(X=draw.choice(letters), T=draw.choice(options))
        rows.append([f"val_{task}_{number}", task, options, draw.choice(letters), said])
    return rows


BLINK_TASKS = tuple(PHRASES["blink tasks"])


def open_rows(seed: int) -> list[list[Any]]:
    """[id, options or none, gold, reply] of MMMU's ids: letters, and open answers with several golds."""
    draw = random.Random(seed)
    rows = []
    for number, (_, options, letter, reply) in enumerate(choice_rows(seed + 1)):
        name = f"validation_{draw.choice(('Art', 'Art_Theory', 'Math', 'Pharmacy', 'Sociology'))}_{number}"
        if draw.random() < 0.6:
            rows.append([name, options, letter, reply])
            continue
        gold = draw.choice(SHORT)
        said = _open_reply(draw, gold if draw.random() < 0.6 else draw.choice(SHORT))
        golds = [gold, draw.choice(SHORT)] if draw.random() < 0.2 else gold
        rows.append([name, [], golds, said])
    return rows


SHORT = tuple(PHRASES["short answers"])
AROUND = tuple(PHRASES["round a short answer"])


def _open_reply(draw: random.Random, text: str) -> str:
    return draw.choice(AROUND).replace("{}", text)


def short_rows(seed: int) -> list[list[Any]]:
    """[id, gold, reply]"""
    draw = random.Random(seed)
    rows = []
    for number in range(ROWS):
        gold = draw.choice(SHORT)
        if draw.random() < 0.3:
            gold = f"{draw.uniform(-3, 300):.{draw.randint(0, 3)}f}"
            near = f"{float(gold) * draw.choice((1, 1.05, 0.95, 1.049, 1.051, 0.9499, 100, 0.01)):.4g}"
            rows.append([str(number), gold, draw.choice((near, near, f"{near}%", f"{near} "))])
            continue
        rows.append(
            [str(number), gold, _open_reply(draw, gold if draw.random() < 0.5 else draw.choice(SHORT))]
        )
    return rows


ANSWERS = tuple(PHRASES["annotators' answers"])
TYPOS = tuple(PHRASES["round an annotator's answer"])


def annotated_rows(seed: int) -> list[list[Any]]:
    """[id, ten answers, reply]; all ten are the same in a part of them."""
    draw = random.Random(seed)
    rows = []
    for number in range(ROWS):
        kinds = draw.sample(ANSWERS, draw.randint(1, 4))
        answers = [draw.choice(kinds) for _ in range(10)]
        said = draw.choice(TYPOS).replace("{}", draw.choice(kinds if draw.random() < 0.8 else ANSWERS))
        said = draw.choice((said, said, said.upper(), said.capitalize()))
        rows.append([str(number), answers, said])
    return rows


def mathvista_rows(seed: int) -> list[list[Any]]:
    """[id, question type, answer type, choices, precision, gold, reply]"""
    draw = random.Random(seed)
    rows = []
    for number in range(ROWS):
        kind = draw.choice(("multi_choice", "integer", "float", "list"))
        if kind == "multi_choice":
            choices = draw.sample([one for one in OPTIONS if one], draw.randint(2, 6))
            letters = string.ascii_uppercase[: len(choices)]
            reply = draw.choice((draw.choice(choices), _reply(draw, choices, letters)))
            rows.append([str(number), kind, "text", choices, None, draw.choice(choices), reply])
            continue
        gold, precision = str(draw.randint(-5, 40)), None
        reply = draw.choice(
            (gold, gold, f" {gold}", f"{gold}.0", f"+{gold}", f"{gold} apples", str(draw.randint(0, 9)))
        )
        if kind == "float":
            precision = float(draw.randint(1, 2))
            value = draw.uniform(-3, 30)
            gold = str(round(value, int(precision)))
            reply = draw.choice(
                (gold, f"{value:.4f}", f"{value:.1f}", f"{value:e}", f"{gold}0", f"{gold} cm", "nan")
            )
        if kind == "list":
            gold = str([draw.randint(0, 9), draw.randint(0, 9)])
            reply = draw.choice((gold, gold.replace(" ", ""), "", "3 and 4"))
        if draw.random() < 0.15:
            reply = draw.choice(
                ("", " ", "1e3", "inf", "1_0", "٣", 'The answer is "3".', "three", "0", "0.0", "-0")
            )
        rows.append([str(number), "free_form", kind, None, precision, gold, reply])
    return rows


BOXES = tuple(PHRASES["boxes"])


def box_rows(seed: int) -> list[list[Any]]:
    """[id, split, width, height, [left, top, width, height] in pixels, reply]"""
    draw = random.Random(seed)
    rows = []
    for number in range(ROWS):
        width, height = draw.choice(((640, 480), (480, 640), (1600, 1200), (100, 100)))
        left, top = draw.randint(0, width // 2), draw.randint(0, height // 2)
        box = [left, top, draw.randint(1, width - left), draw.randint(1, height - top)]
        corners = (left, top, left + box[2], top + box[3])
        scale = draw.choice(("share", "share", "share", "pixel", "mille"))
        said = []
        for place, value in enumerate(corners):
            size = (width, height)[place % 2]
            moved = value + draw.choice((0, 0, 0.02, -0.05, 0.1, 0.3)) * size
            text = {
                "share": f"{moved / size:.3f}",
                "pixel": f"{moved:.0f}",
                "mille": f"{moved / size * 1000:.0f}",
            }
            said.append(text[scale])
        if draw.random() < 0.05:
            said = [text.removeprefix("0") or "0" for text in said]
        split = draw.choice(("val", "val", "testA", "testB"))
        rows.append([str(number), split, width, height, box, draw.choice(BOXES).format(*said)])
    return rows


def graded_rows(seed: int, *, runs: int = 2) -> list[list[Any]]:
    """[id, capabilities, a grade for each run]"""
    draw = random.Random(seed)
    names = ("rec", "ocr", "know", "gen", "spat", "math", "seq")
    combinations = [tuple(sorted(draw.sample(names, draw.randint(1, 4)))) for _ in range(18)]
    return [
        [f"v1_{number}", list(draw.choice(combinations)), [draw.randint(0, 10) / 10 for _ in range(runs)]]
        for number in range(ROWS)
    ]


def _reply(draw: random.Random, options: list[str], letters: str) -> str:
    one = _said(draw, options, letters)
    return one + draw.choice(JOINS) + _said(draw, options, letters) if draw.random() < 0.2 else one


def _said(draw: random.Random, options: list[str], letters: str) -> str:
    x, y = draw.choice(letters), draw.choice(letters)
    t, u = draw.choice(options), draw.choice(options)
    shape = draw.choice(REPLIES)
    for mark, text in (
        ("{X}", x),
        ("{x}", x.lower()),
        ("{Y}", y),
        ("{T}", t),
        ("{t}", t.upper()),
        ("{U}", u),
    ):
        shape = shape.replace(mark, text)
    return shape
