"""RealWorldQA: choices and short answers about photographs. Its owner publishes no scorer; "official" is
lmms-eval's rule, which reads the published file; the kit's rule needs the kit's TSV.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import tsv
from bench.kit_letters import kit_letters
from bench.parquet import image_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, option_lines
from bench.rules.lmms_letters import extract_letter
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Choices, Outcome, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import BenchError

TEMPLATE = "image, then {question} with its options and its instruction"
LETTERS = "ABCD"
_OPTION = re.compile(r"^([A-D])\.\s+(.*)$", re.MULTILINE)


def load(path: Path) -> list[Row]:
    """Read the parquet files or their folder, or the kit's TSV.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: an index is there twice.
    """
    if path.suffix == ".tsv":
        rows = tsv.read_rows(path)
        require_unique((row.id for row in rows), where=str(path))
        return rows
    rows = []
    for file in parquet_files(path, part="test"):
        for cells in read_cells(file, columns=("question", "answer", "image")):
            where = f"{file}, row {len(rows)}"
            question, gold = text_of(cells, "question", where), text_of(cells, "answer", where).strip()
            rows.append(
                Row(
                    # The file has no ids: its order is what names a row.
                    id=str(len(rows)),
                    question=question,
                    images={1: image_of(cells["image"], where)},
                    gold=gold,
                    options=dict(_OPTION.findall(question)) if gold in LETTERS else {},
                    split="test",
                    groups={"question type": ("multiple-choice" if gold in LETTERS else "open",)},
                    facts={"options_in_question": True},
                )
            )
    return rows


def prompt(row: Row) -> Query:
    """Image and the question, which has its options and says how to answer."""
    lines = "" if row.facts.get("options_in_question") else f"\n{option_lines(row.options)}"
    return images_first(row, f"{row.question.strip()}{lines}")


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval: a letter where the answer is one, else the same text but for case and a final full stop."""
    gold = str(row.gold).strip()
    if gold.upper() in tuple(LETTERS):
        letter = extract_letter(reply, LETTERS)
        return Mark(hit=float(letter == gold.upper()), read=letter or "")
    said = reply.lower().strip().rstrip(".")
    return Mark(hit=float(said == gold.lower()), read=said[:40])


def score(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
    """The mean over rows; the kit's rule is refused where a question has no options."""
    bare = [row.id for row in rows if not row.options]
    if choices.compat == VLMEVALKIT and bare:
        raise BenchError(
            f"{len(bare)} questions have no options (the first: '{bare[0]}'), and the kit scores letters",
            where="RealWorldQA",
            fix="Name the kit's TSV",
        )
    return by_rules({OFFICIAL: lmms, VLMEVALKIT: kit_letters, LMMS: lmms})(rows, replies, choices)


REALWORLDQA = Task(
    name="realworldqa",
    title="RealWorldQA",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="none published; lmms-eval's",
    source=Source(
        files="the parquet files, or the kit's TSV",
        licence="CC-BY-ND-4.0",
        repository="xai-org/RealworldQA",
        revision="17e7f75e092e47169732462ea3cdfebe911105dd",
        patterns=("data/*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=score,
)
