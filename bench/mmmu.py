"""MMMU: parquet files -> prompts -> scores by subject and domain.

The official code answers what it cannot parse by a random choice. Here such a row counts wrong and is
reported apart; `official_random` draws as the official script does (seed 42, one stream, subjects by name,
rows in file order).
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mmmu_parse import choice_is_right, open_is_right, parse_choice, parse_open
from bench.types import Group, Part, Query, Score
from genrecal.core.errors import BenchError, DataError
from genrecal.core.images import open_image

TITLE = "MMMU"
CHOICE_PROMPT = "{question}\n\n{options}\n\nAnswer with the option's letter from the given choices directly."
OPTION_LINE = "({letter}) {text}"
OPEN_PROMPT = "{question}\n\nAnswer the question using a single word or phrase."
PROMPT_TEMPLATE = "\n---\n".join((CHOICE_PROMPT, OPTION_LINE, OPEN_PROMPT, "images at their <image N>"))
OFFICIAL_SEED = 42
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
OTHER_DOMAIN = "Other"  # of subjects that are not MMMU's

_IMAGE_MENTION = re.compile(r"<image (\d+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row; `options` is empty where the question is open."""

    id: str
    question: str
    options: Mapping[str, str]  # letter -> text
    gold: str | tuple[str, ...]  # a letter, or the answer to an open question, or several right ones
    images: Mapping[int, bytes]  # 1..7 -> encoded image

    @property
    def subject(self) -> str:
        """What stands between the first and the last underscore of the id."""
        return "_".join(self.id.split("_")[1:-1])

    @property
    def split(self) -> str:
        return self.id.split("_")[0]


def load(path: Path) -> list[Question]:
    """Read one parquet file, or all in a folder; of a folder with several splits, the validation files.

    Raises:
        DataError: no such file, no parquet, a column missing, a row that cannot be used.
    """
    questions = [question for file in files_of(path) for question in _read(file)]
    if not questions:
        raise DataError("holds no questions", where=path)
    splits = sorted({question.split for question in questions})
    if len(splits) > 1:
        raise DataError(
            f"holds several splits ({', '.join(splits)})", where=path, fix="Name one split's files"
        )
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"id '{question.id}' stands there twice", where=path)
        seen.add(question.id)
    return questions


def files_of(path: Path) -> list[Path]:
    """The parquet files that `load` reads."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError("no such file or folder", where=path, fix="Name MMMU's parquet file or their folder")
    files = sorted(path.rglob("*.parquet"))
    files = [file for file in files if "validation" in file.name] or files
    if not files:
        raise DataError("holds no parquet file", where=path)
    return files


def as_query(question: Question) -> Query:
    """The official prompt; every `<image N>` becomes that image, and images that no text names come first."""
    if question.options:
        lines = [OPTION_LINE.format(letter=letter, text=text) for letter, text in question.options.items()]
        text = CHOICE_PROMPT.format(question=question.question, options="\n".join(lines))
    else:
        text = OPEN_PROMPT.format(question=question.question)
    images = {
        number: open_image(data, name=f"image_{number} of '{question.id}'")
        for number, data in question.images.items()
    }
    pieces = _IMAGE_MENTION.split(text)  # text, number, text, number, ..., text
    named = {int(number) for number in pieces[1::2]}
    parts: list[Part] = [image for number, image in images.items() if number not in named]
    for place, piece in enumerate(pieces):
        if place % 2:
            parts.append(images[int(piece)])
        elif piece.strip("\n"):
            # Chat templates bring their own line breaks round an image.
            parts.append(piece.strip("\n"))
    return Query(id=question.id, parts=tuple(parts))


def score(
    questions: Sequence[Question], replies: Mapping[str, str], *, official_random: bool = False
) -> Score:
    """Score raw replies by the official rules.

    Args:
        questions: what `load` gave.
        replies: id -> raw reply.
        official_random: draw where a reply cannot be parsed, as the official script does; else it is wrong.

    Raises:
        BenchError: a question has no reply.
    """
    if not questions:
        raise BenchError("there are no questions to score", where=TITLE)
    missing = [question.id for question in questions if question.id not in replies]
    if missing:
        raise BenchError(f"{len(missing)} questions have no answer (the first: '{missing[0]}')", where=TITLE)
    chance = random.Random(OFFICIAL_SEED)
    right: dict[str, bool] = {}
    random_rows, lucky = [], 0
    for question in sorted(questions, key=lambda question: question.subject):
        reply = replies[question.id]
        if not question.options:
            right[question.id] = open_is_right(parse_open(reply), question.gold)
            continue
        letter = parse_choice(reply, question.options)
        right[question.id] = choice_is_right(letter, question.gold)
        if letter is None:
            random_rows.append(question.id)
            would_be_right = choice_is_right(chance.choice(list(question.options)), question.gold)
            lucky += would_be_right
            right[question.id] = official_random and would_be_right
    hits = {question.id: float(right[question.id]) for question in questions}
    details: dict[str, Any] = {
        "random_rows": len(random_rows),
        "random_rows_right_by_luck": lucky,
        "random_row_ids": random_rows,
        "official_random": official_random,
    }
    return Score(
        title=f"{TITLE}, random rows drawn" if official_random else TITLE,
        score=sum(hits.values()) / len(hits),
        n=len(hits),
        split=questions[0].split,
        groups={
            "subject": _groups(questions, hits, lambda question: question.subject),
            "domain": _groups(questions, hits, lambda q: DOMAIN_OF.get(q.subject, OTHER_DOMAIN)),
            "question type": _groups(questions, hits, lambda q: "multiple-choice" if q.options else "open"),
        },
        hits=hits,
        details=details,
    )


def _groups(questions: Sequence[Question], hits: Mapping[str, float], key: Any) -> dict[str, Group]:
    members: dict[str, list[float]] = {}
    for question in questions:
        members.setdefault(key(question), []).append(hits[question.id])
    return {name: Group(n=len(of), score=sum(of) / len(of)) for name, of in sorted(members.items())}


def _read(path: Path) -> list[Question]:
    # Imported here: a run without MMMU does not need pyarrow.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot be read as parquet ({' '.join(str(error).split())})", where=path) from None
    for column in COLUMNS:
        if column not in table.column_names:
            raise DataError(f"has no column '{column}'", where=path, fix="Is this a file of MMMU?")
    return [_question(row, path) for row in table.to_pylist()]


def _question(row: Mapping[str, Any], path: Path) -> Question:
    name = row["id"]
    if not isinstance(name, str) or len(name.split("_")) < 3:
        raise DataError(f"id {name!r} is not of the form split_Subject_number", where=path)
    where = f"{path}, '{name}'"
    if not isinstance(row["question"], str) or not isinstance(row["answer"], str):
        raise DataError("has no question or no answer", where=where)
    options: dict[str, str] = {}
    gold: str | tuple[str, ...] = row["answer"]
    if row["question_type"] == "multiple-choice":
        options = dict(zip(LETTERS, _list(row["options"], where), strict=False))
        if gold not in options:
            raise DataError(f"its answer '{gold}' is none of its {len(options)} options", where=where)
    elif row["answer"].startswith("["):
        # Open questions with several right answers hold a Python list; "[0, 1]" is an interval, not a list.
        try:
            several = ast.literal_eval(row["answer"])
        except (ValueError, SyntaxError):
            several = None
        if isinstance(several, list) and several and all(isinstance(answer, str) for answer in several):
            gold = tuple(several)
    question = Question(
        id=name, question=row["question"], options=options, gold=gold, images=_images(row, where)
    )
    text = " ".join((question.question, *options.values()))
    for number in {int(number) for number in _IMAGE_MENTION.findall(text)} - question.images.keys():
        raise DataError(f"names <image {number}>, but image_{number} is empty", where=where)
    return question


def _list(cell: Any, where: str) -> list[str]:
    try:
        options = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError):
        options = None
    if not isinstance(options, list) or not 0 < len(options) <= len(LETTERS):
        raise DataError(f"its options {str(cell)[:60]!r} are no Python list", where=where)
    return [str(option) for option in options]


def _images(row: Mapping[str, Any], where: str) -> dict[int, bytes]:
    images = {}
    for number in range(1, 8):
        cell = row.get(f"image_{number}")
        if cell is None:
            continue
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not data:
            raise DataError(f"image_{number} holds no image bytes", where=where)
        # Decoded once before the run: a broken image must not end it after hours.
        open_image(data, name=f"{where}, image_{number}")
        images[number] = data
    return images
