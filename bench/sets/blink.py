"""BLINK: fourteen visual tasks with one to four images; the score is the mean of the tasks.

The official code reads a reply that names one option in brackets, and has an LLM map every other to "(A)".
With a judge's endpoint that LLM is asked. Without one the kit's rules stand in for it, and what they cannot
read counts wrong and is reported apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import tsv
from bench.extraction import BLINK as PROMPT
from bench.extraction import ExtractionPrompt, Request
from bench.kit_letters import kit_letters
from bench.parquet import numbered_images, options_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, option_lines
from bench.rules.lmms_letters import first_letter
from bench.scoring import ByLLM, Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

TEMPLATE = "images, then {prompt}"
TASK = "task"
MOST_IMAGES = 4
LETTERS = "ABCDE"
# What an LLM maps a reply to; "Z" is none of the options.
_MAPPED = re.compile(r"\s*(?:\(([A-EZ])\)|([A-EZ])\b)")


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


def own_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter that BLINK's code reads; None where it asks its LLM.

    A letter alone, or the only option that stands in brackets as a word of its own: in the last paragraph,
    else in the whole reply.
    """
    if reply in [*LETTERS, *(f"({letter})" for letter in LETTERS)]:
        return reply.strip("()")
    brackets = {f"({letter})" for letter in options}
    for part in (reply.split("\n\n")[-1], reply):
        named = brackets & set(part.split())
        if len(named) == 1:
            return named.pop().strip("()")
    return None


def official(row: Row, reply: str) -> Mark:
    """BLINK's own code, and the kit's rules in place of its LLM."""
    letter = own_letter(reply, row.options)
    return kit_letters(row, reply) if letter is None else Mark(hit=float(letter == row.gold), read=letter)


def request(row: Row, reply: str, prompt: ExtractionPrompt) -> Request | None:
    """What BLINK's code asks its LLM; None where code reads the reply."""
    if own_letter(reply, row.options) is not None:
        return None
    question = f"{row.question}\nSelect from the following choices"
    text = prompt.text.format(question, option_lines(row.options, "({letter}) {text}"), reply)
    return Request(text=text, usable=lambda answer: _MAPPED.match(answer) is not None)


def mark_mapped(row: Row, extraction: str) -> Mark:
    """What the LLM mapped a reply to: the letter that it begins with."""
    found = _MAPPED.match(extraction)
    letter = (found[1] or found[2]) if found else ""
    return Mark(hit=float(letter == row.gold), read="" if letter == "Z" else letter)


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
    rule="BLINK's own code and mean of tasks, VLMEvalKit's letters in place of its LLM",
    source=Source(
        files="the parquet files of its tasks, or the kit's TSV",
        licence="Apache-2.0",
        repository="BLINK-Benchmark/BLINK",
        revision="8b7a4835b37397d7cec3aaab2ccff63812bcd06e",
        patterns=("*/val-*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules(
        {OFFICIAL: official, VLMEVALKIT: kit_letters, LMMS: lmms},
        macro={OFFICIAL: TASK},
        by_llm=ByLLM(benchmark=PROMPT, request=request, mark=mark_mapped),
    ),
)
