"""MMStar: 1,500 choices that need their image; the official rule looks at how a reply begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import tsv
from bench.kit_letters import kit_letters
from bench.parquet import image_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, option_lines
from bench.rules.lmms_letters import extract_letter
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

LAST_LINE = "\nAnswer with the option's letter from the given choices directly"
TEMPLATE = f"image, then {{question}} with its options{LAST_LINE}"
LETTERS = "ABCD"
# Before the letter in a reply, in lower case.
BEGINNINGS = ("", "(", "option ", "the answer is ")
# As the question ends: "Options: A: one, B: two, C: three, D: four"
_OPTIONS = re.compile(r"Options:\s*(.*)$", re.DOTALL)
_OPTION = re.compile(r"(?:^|,\s*)([A-D]):\s*(.*?)(?=,\s*[A-D]:|$)", re.DOTALL)


def load(path: Path) -> list[Row]:
    """Read the parquet file or its folder, or the kit's TSV.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: an index is there twice.
    """
    if path.suffix == ".tsv":
        rows = [replace(row, groups=_groups(row.groups)) for row in tsv.read_rows(path)]
    else:
        columns = ("index", "question", "image", "answer", "category", "l2_category")
        rows = [
            _row(cells, file)
            for file in parquet_files(path, part="val")
            for cells in read_cells(file, columns=columns)
        ]
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """Image, question with its options, the instruction."""
    lines = "" if row.facts.get("options_in_question") else f"\nOptions:\n{option_lines(row.options)}"
    return images_first(row, f"{row.question.strip()}{lines}{LAST_LINE}")


def official(row: Row, reply: str) -> Mark:
    """MMStar's own evaluator: the letter first, or after one of three beginnings, whatever follows it."""
    said, gold = reply.lower().strip().replace("\n", " "), str(row.gold).lower().strip()
    right = any(said.startswith(beginning + gold) for beginning in BEGINNINGS)
    return Mark(hit=float(right), read=said[:20])


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval's letters; its score is the mean of the sub-skills."""
    letter = extract_letter(reply, LETTERS)
    return Mark(hit=float(letter == str(row.gold).strip().upper()), read=letter or "")


def _groups(groups: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The kit's TSV may write its second column either way."""
    second = groups.get("l2_category") or groups.get("l2-category") or ()
    return {"category": groups.get("category", ()), "l2_category": second}


def _row(cells: Mapping[str, Any], path: Path) -> Row:
    where = f"{path}, row {cells['index']}"
    question = text_of(cells, "question", where)
    gold = text_of(cells, "answer", where)
    listed = _OPTIONS.search(question)
    options = {letter: text.strip() for letter, text in _OPTION.findall(listed[1])} if listed else {}
    # Some questions write their options in another way; their letters are known.
    options = options or dict.fromkeys(LETTERS, "")
    if gold.strip().upper() not in LETTERS:
        raise DataError(f"its answer '{gold}' is no letter", where=where)
    return Row(
        id=str(cells["index"]),
        question=question,
        images={1: image_of(cells["image"], where)},
        gold=gold,
        options=options,
        split="val",
        groups={"category": (str(cells["category"]),), "l2_category": (str(cells["l2_category"]),)},
        facts={"options_in_question": True},
    )


MMSTAR = Task(
    name="mmstar",
    title="MMStar",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="MMStar's own evaluator",
    source=Source(
        files="mmstar.parquet, or the kit's TSV",
        licence="not stated",
        repository="Lin-Chen/MMStar",
        revision="bc98d668301da7b14f648724866e57302778ab27",
        patterns=("*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules({OFFICIAL: official, VLMEVALKIT: kit_letters, LMMS: lmms}, macro={LMMS: "l2_category"}),
)
