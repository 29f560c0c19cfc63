"""SEED-Bench-2-Plus: choices about charts, maps and web pages.

Its owners rank options by likelihood and publish no scorer of replies; "official" is VLMEvalKit's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import tsv
from bench.image_files import find_image
from bench.kit_letters import kit_letters
from bench.parquet import image_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, option_lines
from bench.rules.lmms_letters import first_character
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, ImageSource, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError
from genrecal.core.files import read_json

LAST_LINE = "\nAnswer with the option's letter from the given choices directly."
TEMPLATE = f"image, then {{question}}\n{{letter}}. {{text}}{LAST_LINE}"
LETTERS = "ABCD"
KIND = "question_image_type"  # Chart, Map or Web


def load(path: Path) -> list[Row]:
    """Read the owners' JSON beside its images, parquet files, or the kit's TSV.

    Raises:
        DataError: no such file, a row or an image that cannot be used.
        BenchError: a question_id is there twice.
    """
    if path.suffix == ".tsv":
        rows = [
            replace(row, groups={"type": row.groups.get("category", ("all",))}) for row in tsv.read_rows(path)
        ]
    elif path.suffix == ".json":
        content = read_json(path)
        questions = content.get("questions") if isinstance(content, dict) else None
        if not isinstance(questions, list) or not questions:
            raise DataError("holds no list 'questions'", where=path)
        folders = (path.parent, *(folder for folder in sorted(path.parent.iterdir()) if folder.is_dir()))
        rows = [
            _row(cells, path, find_image(text_of(cells, "data_id", str(path)), folders))
            for cells in questions
        ]
    else:
        rows = [
            _row(cells, file, image_of(cells["image"], f"{file}, '{cells['question_id']}'"))
            for file in parquet_files(path)
            for cells in read_cells(file, columns=("question_id", "question", "answer", "image"))
        ]
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """Image, question, options, the instruction."""
    return images_first(row, f"{row.question}\n{option_lines(row.options)}{LAST_LINE}")


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval: the first character, in either case."""
    read = first_character(reply)
    return Mark(hit=float(read.lower() == str(row.gold).lower()), read=read)


def _row(cells: Mapping[str, Any], path: Path, image: ImageSource) -> Row:
    name = str(cells.get("question_id"))
    where = f"{path}, '{name}'"
    # The JSON and the parquet files write a choice's letter in different cases.
    lower = {key.lower(): value for key, value in cells.items()}
    options = {letter: text_of(lower, f"choice_{letter.lower()}", where) for letter in LETTERS}
    gold = text_of(cells, "answer", where)
    if gold not in options:
        raise DataError(f"its answer '{gold}' is none of its options", where=where)
    kind = str(cells.get(KIND) or Path(str(cells.get("data_id", "all"))).parts[0])
    return Row(
        id=name,
        question=text_of(cells, "question", where),
        images={1: image},
        gold=gold,
        options=options,
        split="test",
        groups={"type": (kind.capitalize(),)},
    )


SEED_BENCH_2_PLUS = Task(
    name="seed_bench_2_plus",
    title="SEED-Bench-2-Plus",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="none published for replies; VLMEvalKit's",
    source=Source(
        files="the questions' JSON with its images, parquet files, or the kit's TSV",
        licence="CC-BY-NC-4.0",
        repository="AILab-CVC/SEED-Bench-2-plus",
        revision="e8d1c82117180837f921604d827ad148efa63999",
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules({OFFICIAL: kit_letters, VLMEVALKIT: kit_letters, LMMS: lmms}),
)
