"""BLINK: fourteen visual tasks with one to four images; the score is the mean of the tasks.

The official code has an LLM map every reply to "(A)"; here the kit's rules read it, and what they cannot
read counts wrong and is reported apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import tsv
from bench.kit_letters import kit_letters
from bench.parquet import numbered_images, options_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, option_lines
from bench.rules.lmms_letters import first_letter
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

TEMPLATE = "images, then {prompt}"
TASK = "task"
MOST_IMAGES = 4


def load(path: Path) -> list[Row]:
    """Read the parquet files of the validation split or their folder, or the kit's TSV.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: an idx is there twice.
    """
    if path.suffix == ".tsv":
        rows = [
            replace(row, groups={TASK: row.groups.get("category", ("all",))}) for row in tsv.read_rows(path)
        ]
    else:
        columns = ("idx", "sub_task", "prompt", "choices", "answer", "image_1")
        rows = [
            _row(cells, file)
            for file in parquet_files(path, part="val")
            for cells in read_cells(file, columns=columns)
        ]
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """All images, then the official prompt, which has its choices."""
    official = row.facts.get("prompt")
    return images_first(row, official or f"{row.question}\n{option_lines(row.options, '({letter}) {text}')}")


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval: the first letter of the reply, of whatever word."""
    letter = first_letter(reply)
    return Mark(hit=float(letter == row.gold), read=letter)


def _row(cells: Mapping[str, Any], path: Path) -> Row:
    name = text_of(cells, "idx", str(path))
    where = f"{path}, '{name}'"
    options = options_of(cells["choices"], where)
    gold = text_of(cells, "answer", where).strip("()")
    if gold not in options:
        fix = "The test split has no answers; name the validation files" if gold == "hidden" else None
        raise DataError(f"its answer '{gold}' is none of its {len(options)} options", where=where, fix=fix)
    return Row(
        id=name,
        question=str(cells.get("question") or ""),
        images=numbered_images(cells, where, most=MOST_IMAGES),
        gold=gold,
        options=options,
        split=name.split("_")[0],
        groups={TASK: (text_of(cells, "sub_task", where),)},
        facts={"prompt": text_of(cells, "prompt", where)},
    )


BLINK = Task(
    name="blink",
    title="BLINK",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="BLINK's mean of tasks over letters read by rule, not by its LLM",
    source=Source(
        files="the parquet files of its tasks, or the kit's TSV",
        licence="Apache-2.0",
        repository="BLINK-Benchmark/BLINK",
        patterns=("*/val-*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules({OFFICIAL: kit_letters, VLMEVALKIT: kit_letters, LMMS: lmms}, macro={OFFICIAL: TASK}),
)
