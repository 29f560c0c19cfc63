"""MMMU: parquet files -> prompts -> scores by subject and domain.

The official code answers what it cannot parse by a random choice. Here such a row counts wrong and is
reported apart; `official_random` draws as the official script does (seed 42, one stream, subjects by name,
rows in file order).
"""

from __future__ import annotations

import ast
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.parquet import numbered_images, options_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_in_place, option_lines, require_named_images
from bench.rules.mmmu_domains import DOMAIN_OF, OTHER_DOMAIN
from bench.rules.mmmu_parse import choice_is_right, open_is_right, parse_choice, parse_choice_pro, parse_open
from bench.rules.option_letters import infer_option
from bench.scoring import Mark, average, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Choices, Outcome, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

TITLE = "MMMU"
CHOICE_PROMPT = "{question}\n\n{options}\n\nAnswer with the option's letter from the given choices directly."
OPTION_LINE = "({letter}) {text}"
OPEN_PROMPT = "{question}\n\nAnswer the question using a single word or phrase."
TEMPLATE = "\n---\n".join((CHOICE_PROMPT, OPTION_LINE, OPEN_PROMPT, "images at their <image N>"))
OFFICIAL_SEED = 42
COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
MOST_IMAGES = 7
OPEN_KIT_OPTION = "Other Answers"  # what the kit puts beside the answer of an open question


def load(path: Path) -> list[Row]:
    """Read one parquet file, or all in a folder; of a folder with several splits, the validation files.

    Raises:
        DataError: no such file, no parquet, a column missing, a row that cannot be used.
        BenchError: an id is there twice.
    """
    files = parquet_files(path, part="validation")
    rows = [_row(cells, file) for file in files for cells in read_cells(file, columns=COLUMNS)]
    splits = sorted({row.split for row in rows})
    if len(splits) > 1:
        raise DataError(
            f"holds several splits ({', '.join(splits)})", where=path, fix="Name one split's files"
        )
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """The official prompt; every `<image N>` becomes that image, and images that no text names come first."""
    if row.options:
        lines = option_lines(row.options, OPTION_LINE)
        return images_in_place(row, CHOICE_PROMPT.format(question=row.question, options=lines))
    return images_in_place(row, OPEN_PROMPT.format(question=row.question))


def official(row: Row, reply: str) -> Mark:
    """MMMU's own evaluator."""
    if not row.options:
        values = parse_open(reply)
        return Mark(hit=float(open_is_right(values, row.gold)), read=str(values))
    letter = parse_choice(reply, row.options)
    return _choice(row, letter)


def vlmevalkit(row: Row, reply: str) -> Mark:
    """The kit: an open question becomes a choice between its answer and "Other Answers"."""
    options, gold = row.options, row.gold
    if not options:
        answer = row.gold if isinstance(row.gold, str) else str(list(row.gold))
        options, gold = {"A": answer, "B": OPEN_KIT_OPTION}, "A"
    letter = infer_option(reply, options)
    return Mark(hit=float(letter == gold), read=letter or "", unparsed=letter is None)


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval at 75571cfe: MMMU-Pro's letters, and no open answer is ever right.

    It keeps one string of an open answer and then compares it character by character (its issue 1436).
    """
    if not row.options:
        return Mark(hit=0.0)
    return _choice(row, parse_choice_pro(reply, row.options, answer_mark=False))


def score(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
    """The mean over all rows; random rows wrong and apart, or drawn with the official seed."""
    if choices.compat != OFFICIAL:
        return by_rules({VLMEVALKIT: vlmevalkit, LMMS: lmms})(rows, replies, choices)
    marks = {row.id: official(row, replies[row.id]) for row in rows}
    chance = random.Random(OFFICIAL_SEED)
    lucky = 0
    for row in sorted(rows, key=lambda row: row.facts["subject"]):
        if marks[row.id].random:
            would_be_right = choice_is_right(chance.choice(list(row.options)), row.gold)
            lucky += would_be_right
            if choices.official_random:
                marks[row.id] = replace(marks[row.id], hit=float(would_be_right))
    outcome = average(rows, marks)
    drawn: dict[str, Any] = {"random_rows": 0, "random_row_ids": [], **outcome.details}
    drawn |= {"random_rows_right_by_luck": lucky, "official_random": choices.official_random}
    title = f"{TITLE}, random rows drawn" if choices.official_random else None
    return replace(outcome, details=drawn, title=title)


def _choice(row: Row, letter: str | None) -> Mark:
    if letter is None:
        return Mark(hit=0.0, random=True, luck=1 / len(row.options))
    return Mark(hit=float(choice_is_right(letter, row.gold)), read=letter)


def subject_of(name: str, where: str) -> tuple[str, str]:
    """The split and the subject of an id: what stands before the first and the last underscore.

    Raises:
        DataError: it is of another form.
    """
    parts = name.split("_")
    if len(parts) < 3:
        raise DataError(f"id {name!r} is not of the form split_Subject_number", where=where)
    return parts[0], "_".join(parts[1:-1])


def groups_of(subject: str, kind: str) -> dict[str, tuple[str, ...]]:
    return {
        "subject": (subject,),
        "domain": (DOMAIN_OF.get(subject, OTHER_DOMAIN),),
        "question type": (kind,),
    }


def _row(cells: Mapping[str, Any], path: Path) -> Row:
    name = str(cells["id"])
    split, subject = subject_of(name, str(path))
    where = f"{path}, '{name}'"
    answer = text_of(cells, "answer", where)
    options: dict[str, str] = {}
    gold: str | tuple[str, ...] = answer
    if cells["question_type"] == "multiple-choice":
        options = options_of(cells["options"], where)
        if gold not in options:
            raise DataError(f"its answer '{gold}' is none of its {len(options)} options", where=where)
    elif answer.startswith("["):
        # Open questions with several right answers hold a Python list; "[0, 1]" is an interval, not a list.
        try:
            several = ast.literal_eval(answer)
        except (ValueError, SyntaxError):
            several = None
        if isinstance(several, list) and several and all(isinstance(one, str) for one in several):
            gold = tuple(several)
    row = Row(
        id=name,
        question=text_of(cells, "question", where),
        images=numbered_images(cells, where, most=MOST_IMAGES),
        gold=gold,
        options=options,
        split=split,
        groups=groups_of(subject, "multiple-choice" if options else "open"),
        facts={"subject": subject},
    )
    require_named_images(row, where)
    return row


MMMU = Task(
    name="mmmu",
    title=TITLE,
    version="1",
    language="en",
    template=TEMPLATE,
    rule="MMMU's own evaluator",
    source=Source(
        files="the parquet files of its subjects",
        licence="Apache-2.0",
        repository="MMMU/MMMU",
        patterns=("*/validation-*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=score,
)
