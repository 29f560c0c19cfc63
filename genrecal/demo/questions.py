"""Questions about drawings, with the right reply and plausible wrong ones.

    Layout --questions_about--> Question (text, truth, wrong)

The wordings are few and short because every word costs tokens of tiny models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from genrecal.demo.drawings import COLORS, DIGITS, LETTERS, MAX_BAR, SHAPES, Item, Layout

SIDES = {"circle": "0", "triangle": "3", "square": "4"}
THINGS = {
    "red": "cherry",
    "green": "grass",
    "blue": "sky",
    "yellow": "lemon",
    "purple": "grape",
    "black": "coal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One reply in two lengths; `short` is empty where only a sentence answers."""

    short: str
    explained: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its true reply and wrong ones of the same kind, whose short forms all differ."""

    text: str
    skill: str
    truth: Reply
    wrong: tuple[Reply, ...]

    @property
    def has_short(self) -> bool:
        return bool(self.truth.short)


def questions_about(layout: Layout, rng: random.Random) -> list[Question]:
    """Every question that fits a layout, each with one truth, in random order."""
    questions = _MAKERS[layout.kind](layout.items, rng)
    rng.shuffle(questions)
    return questions


def _question(text: str, skill: str, truth: tuple[str, str], wrong: Sequence[tuple[str, str]]) -> Question:
    return Question(
        text=text,
        skill=skill,
        truth=Reply(short=truth[0], explained=truth[1]),
        wrong=tuple(Reply(short=short, explained=explained) for short, explained in wrong),
    )


def _single(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    (item,) = items
    other_shapes = [name for name in SHAPES if name != item.name]
    other_colors = [color for color in COLORS if color != item.color]
    questions = [
        _question(
            "Which shape is shown?",
            "shape",
            (item.name, f"It is a {item.color} {item.name}."),
            [(name, f"It is a {item.color} {name}.") for name in other_shapes],
        ),
        _question(
            "Which color is shown?",
            "shape",
            (item.color, f"It is a {item.color} {item.name}."),
            [(color, f"It is a {color} {item.name}.") for color in other_colors],
        ),
        _question(
            "Which thing has the same color?",
            "world",
            (THINGS[item.color], f"It is {item.color}, so {THINGS[item.color]}."),
            [(THINGS[color], f"It is {color}, so {THINGS[color]}.") for color in other_colors],
        ),
    ]
    if item.name in SIDES:
        others = [name for name in SIDES if name != item.name]
        questions.append(
            _question(
                "How many sides are there?",
                "world",
                (SIDES[item.name], f"It is a {item.name}, so {SIDES[item.name]}."),
                [(SIDES[name], f"It is a {name}, so {SIDES[name]}.") for name in others],
            )
        )
    return questions


def _listed(items: Sequence[Item]) -> str:
    return ", ".join(f"{item.color} {item.name}" for item in items)


def _altered(items: Sequence[Item], rng: random.Random) -> list[Item]:
    """The same items but one, whose colour or shape is another."""
    changed = list(items)
    place = rng.randrange(len(changed))
    item = changed[place]
    color, name = item.color, item.name
    if rng.random() < 0.5:
        color = rng.choice([other for other in COLORS if other != color])
    else:
        name = rng.choice([other for other in SHAPES if other != name])
    changed[place] = Item(kind=item.kind, name=name, row=item.row, column=item.column, color=color)
    return changed


def _plural(name: str, count: int) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def _near(count: int, rng: random.Random, *, low: int, high: int) -> list[int]:
    """Up to three other whole numbers, the nearest first."""
    others = [number for number in range(low, high + 1) if number != count]
    rng.shuffle(others)
    return sorted(others, key=lambda number: abs(number - count))[:3]


def _scene(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    questions = [
        _question(
            "Describe the image.",
            "scene",
            ("", _listed(items) + "."),
            [("", _listed(_altered(items, rng)) + ".") for _ in range(3)],
        ),
        _question(
            "How many shapes are there?",
            "count",
            (str(len(items)), f"{_listed(items)}, so {len(items)}."),
            [
                (str(number), f"{_listed(_altered(items, rng))}, so {number}.")
                for number in _near(len(items), rng, low=1, high=6)
            ],
        ),
    ]
    shown = sorted({item.name for item in items})
    name = rng.choice(shown)
    questions.append(_count_of(name, items, rng))
    absent = sorted(set(SHAPES) - set(shown))
    asked = rng.choice(absent) if absent and rng.random() < 0.5 else name
    yes, no = ("yes", f"Yes, there is a {asked}."), ("no", f"No, there is no {asked}.")
    questions.append(
        _question(
            f"Is there a {asked}?",
            "presence",
            yes if asked in shown else no,
            [no if asked in shown else yes],
        )
    )
    return questions


def _count_of(name: str, items: Sequence[Item], rng: random.Random) -> Question:
    count = sum(item.name == name for item in items)
    return _question(
        f"How many {name}s are there?",
        "count",
        (str(count), f"There {'is' if count == 1 else 'are'} {_plural(name, count)}."),
        [
            (str(number), f"There {'is' if number == 1 else 'are'} {_plural(name, number)}.")
            for number in _near(count, rng, low=1, high=4)
        ],
    )


def _compare(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    names = sorted({item.name for item in items})
    rng.shuffle(names)
    first, second = names
    counts = [sum(item.name == name for item in items) for name in names]

    def reply(one: int, two: int) -> tuple[str, str]:
        winner = f"{first if one > two else second}s"
        return winner, f"{_plural(first, one)} and {_plural(second, two)}, so {winner}."

    return [
        _question(
            f"Are there more {first}s or {second}s?", "count", reply(*counts), [reply(*reversed(counts))]
        ),
        _count_of(rng.choice(names), items, rng),
    ]


def _bars(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    def described(values: Sequence[int]) -> str:
        return ", ".join(f"{item.color} {value}" for item, value in zip(items, values, strict=True))

    def extreme(values: Sequence[int], word: str) -> tuple[str, str]:
        best = max(values) if word == "highest" else min(values)
        color = items[list(values).index(best)].color
        return color, f"{described(values)}, so {color}."

    values = [item.value for item in items]
    word = rng.choice(("highest", "lowest"))
    truth = extreme(values, word)
    # Turning the values round gives every other bar its turn to be the highest.
    turned = [values[turn:] + values[:turn] for turn in range(1, len(values))]
    asked = rng.choice(items)
    return [
        _question(f"Which bar is {word}?", "chart", truth, [extreme(others, word) for others in turned]),
        _question(
            f"How high is the {asked.color} bar?",
            "chart",
            (str(asked.value), f"The {asked.color} bar is {asked.value}."),
            [
                (str(number), f"The {asked.color} bar is {number}.")
                for number in _near(asked.value, rng, low=1, high=MAX_BAR)
            ],
        ),
        _question(
            "Describe the chart.",
            "chart",
            ("", described(values) + "."),
            [("", described(others) + ".") for others in turned],
        ),
    ]


def _text(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    letters = [item.name for item in items]

    def swapped() -> list[str]:
        """The letters with one of them replaced by another."""
        place = rng.randrange(len(letters))
        other = rng.choice([letter for letter in LETTERS if letter not in letters])
        return [*letters[:place], other, *letters[place + 1 :]]

    def written(shown: Sequence[str]) -> tuple[str, str]:
        return " ".join(shown), f"The letters are {' '.join(shown)}."

    wrong = {" ".join(shown): shown for shown in (swapped() for _ in range(5))}
    place, word = rng.choice(((0, "first"), (-1, "last")))
    others = rng.sample([letter for letter in LETTERS if letter != letters[place]], 3)
    return [
        _question("What is written?", "text", written(letters), [written(shown) for shown in wrong.values()]),
        _question(
            f"Which letter is {word}?",
            "text",
            (letters[place], f"The letters are {' '.join(letters)}, so {letters[place]}."),
            [(other, f"The letters are {' '.join(letters)}, so {other}.") for other in others],
        ),
    ]


def _letter(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    (item,) = items

    def after(letter: str) -> tuple[str, str]:
        following = LETTERS[LETTERS.index(letter) + 1]
        return following, f"It is {letter}, so {following}."

    others = rng.sample([letter for letter in LETTERS[:-1] if letter != item.name], 3)
    return [
        _question("Which letter is next?", "alphabet", after(item.name), [after(other) for other in others]),
        _question(
            "Which letter is shown?",
            "text",
            (item.name, f"It is {item.name}."),
            [(other, f"It is {other}.") for other in others],
        ),
    ]


def _one_digit(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    (item,) = items

    def parity(digit: str) -> tuple[str, str]:
        word = "odd" if int(digit) % 2 else "even"
        return word, f"It is {digit}, so {word}."

    others = rng.sample([digit for digit in DIGITS if digit != item.name], 3)
    odd_one = rng.choice([digit for digit in DIGITS if int(digit) % 2 != int(item.name) % 2])
    return [
        _question(
            "Which digit is shown?",
            "number",
            (item.name, f"It is {item.name}."),
            [(other, f"It is {other}.") for other in others],
        ),
        _question("Is it even or odd?", "number", parity(item.name), [parity(odd_one)]),
    ]


def _two_digits(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    one, two = (int(item.name) for item in items)

    def larger(first: int, second: int) -> tuple[str, str]:
        return str(max(first, second)), f"The digits are {first} and {second}, so {max(first, second)}."

    others = _near(one + two, rng, low=1, high=7)
    return [
        _question(
            "What is the sum?",
            "number",
            (str(one + two), f"{one} plus {two} is {one + two}."),
            [(str(number), f"{one} plus {two} is {number}.") for number in others],
        ),
        _question(
            "Which digit is higher?",
            "number",
            larger(one, two),
            [(str(min(one, two)), f"The digits are {one} and {two}, so {min(one, two)}.")],
        ),
    ]


def _number(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    digits = [item.name for item in items]

    def swapped() -> str:
        place = rng.randrange(len(digits))
        other = rng.choice([digit for digit in DIGITS if digit != digits[place]])
        return "".join([*digits[:place], other, *digits[place + 1 :]])

    number = "".join(digits)
    place, word = rng.choice(((0, "first"), (-1, "last")))
    others = rng.sample([digit for digit in DIGITS if digit != digits[place]], 3)
    return [
        _question(
            "Which number is written?",
            "number",
            (number, f"It is {number}."),
            [(other, f"It is {other}.") for other in sorted({swapped() for _ in range(4)})],
        ),
        _question(
            f"Which digit is {word}?",
            "number",
            (digits[place], f"It is {number}, so {digits[place]}."),
            [(other, f"It is {number}, so {other}.") for other in others],
        ),
    ]


_MAKERS = {
    "single": _single,
    "scene": _scene,
    "compare": _compare,
    "bars": _bars,
    "text": _text,
    "letter": _letter,
    "digit": _one_digit,
    "sum": _two_digits,
    "number": _number,
}
