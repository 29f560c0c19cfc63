"""AI2D: questions about diagrams. Its owners publish no scorer; "official" is the rule of the kit's board."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import tsv
from bench.kit_letters import kit_letters
from bench.parquet import image_of, options_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, option_lines
from bench.rules.lmms_letters import equals_letter
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

LAST_LINE = "\nAnswer with the option's letter from the given choices directly."
TEMPLATE = f"image, then {{question}}\n{{letter}}. {{text}}{LAST_LINE}"


def load(path: Path) -> list[Row]:
    """Read the kit's TSV (labels in the diagrams masked or not), or the parquet files of the test split.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: an index is there twice.
    """
    if path.suffix == ".tsv":
        rows = tsv.read_rows(path)
    else:
        cells = [
            (file, row)
            for file in parquet_files(path, part="test")
            for row in read_cells(file, columns=("question", "options", "answer", "image"))
        ]
        # The file has no ids: its order is what names a row.
        rows = [_row(row, file, number) for number, (file, row) in enumerate(cells)]
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """Image, question, options, the instruction."""
    return images_first(row, f"{row.question}\n{option_lines(row.options)}{LAST_LINE}")


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval: the letter alone, or first with a full stop."""
    return Mark(hit=float(equals_letter(reply, str(row.gold))), read=reply[:20])


def _row(cells: Mapping[str, Any], path: Path, number: int) -> Row:
    where = f"{path}, row {number}"
    options = options_of(cells["options"], where)
    answer = str(cells["answer"])
    if not answer.isdecimal() or int(answer) >= len(options):
        raise DataError(f"its answer '{answer}' is none of its {len(options)} options", where=where)
    return Row(
        id=str(number),
        question=text_of(cells, "question", where),
        images={1: image_of(cells["image"], where)},
        gold=list(options)[int(answer)],
        options=options,
        split="test",
    )


AI2D = Task(
    name="ai2d",
    title="AI2D",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="none published; VLMEvalKit's",
    source=Source(
        files="AI2D_TEST.tsv, or parquet files",
        licence="CC-BY-SA-4.0",
        urls=("https://opencompass.openxlab.space/utils/VLMEval/AI2D_TEST.tsv",),
        md5={"AI2D_TEST.tsv": "0f593e0d1c7df9a3d69bf1f947e71975"},
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules({OFFICIAL: kit_letters, VLMEVALKIT: kit_letters, LMMS: lmms}),
)
