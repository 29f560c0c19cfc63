"""MathVista: mathematics in images. Code reads plain replies; of the rest the official code asks an LLM.

With a judge's endpoint the LLM is asked what the reply answers, and `mark_extraction` scores that. Without
one, a row that would need it counts wrong and is reported apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.extraction import MATHVISTA as PROMPT
from bench.extraction import ExtractionPrompt, Request
from bench.image_files import require_image_file
from bench.parquet import image_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first
from bench.rules.mathvista_answers import extract, normalise
from bench.rules.option_letters import infer_option
from bench.scoring import ByLLM, Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, ImageSource, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError
from genrecal.core.files import read_json

TEMPLATE = "image, then {query}"
CHOICE = "multi_choice"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
GROUPS = ("source", "category", "task", "context", "grade", "language")


def load(path: Path) -> list[Row]:
    """Read the parquet files of testmini or their folder, or `testmini.json` beside `images/`.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: a pid is there twice.
    """
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict) or not content:
            raise DataError("holds no questions", where=path)
        rows = [
            _row({**cells, "pid": name}, path, require_image_file(path.parent / str(cells.get("image"))))
            for name, cells in content.items()
        ]
    else:
        columns = ("pid", "query", "decoded_image", "answer", "question_type", "answer_type", "choices")
        rows = [
            _row(cells, file, image_of(cells["decoded_image"], f"{file}, '{cells['pid']}'"))
            for file in parquet_files(path, part="testmini")
            for cells in read_cells(file, columns=columns)
        ]
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """The official query, which has its hint and its choices."""
    return images_first(row, row.question)


def official(row: Row, reply: str) -> Mark:
    """MathVista's own code up to its LLM."""
    extraction = extract(reply, row.facts, list(row.options.values()))
    return Mark(hit=0.0, unparsed=True) if extraction is None else mark_extraction(row, extraction)


def request(row: Row, reply: str, prompt: ExtractionPrompt) -> Request | None:
    """What MathVista's code asks its LLM; None where code reads the reply."""
    if extract(reply, row.facts, list(row.options.values())) is not None:
        return None
    text = f"{prompt.text.strip()}\n\n{row.question}\n\n{reply}\n\nExtracted answer: "
    return Request(text=text, usable=lambda answer: bool(answer.strip()))


def mark_extraction(row: Row, extraction: str) -> Mark:
    """MathVista's own code after its LLM: normalised by type and compared as strings."""
    answer = normalise(extraction, row.facts, list(row.options.values()))
    return Mark(hit=float(answer == row.gold), read=answer or "")


def vlmevalkit(row: Row, reply: str) -> Mark:
    """The kit before its judge: a letter, or a number that is the gold one and not zero."""
    if row.facts["question_type"] == CHOICE:
        letter = infer_option(reply, row.options)
        right = letter == next(letter for letter, text in row.options.items() if text == row.gold)
        return Mark(hit=float(right), read=letter or "", unparsed=letter is None)
    kind = {"integer": int, "float": float}.get(row.facts["answer_type"])
    try:
        right = kind is not None and kind(reply) == kind(str(row.gold)) != 0
    except ValueError:
        right = False
    # A number that is not the gold one goes to the judge too.
    return Mark(hit=float(right), read=reply[:20], unparsed=not right)


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval up to its LLM: as the official code, but decimals that come as 1.0 leave no float right."""
    extraction = extract(reply.strip(), row.facts, list(row.options.values()))
    if extraction is None:
        return Mark(hit=0.0, unparsed=True)
    is_float = row.facts["answer_type"] == "float" and row.facts["question_type"] != CHOICE
    if is_float and not isinstance(row.facts["precision"], int):
        return Mark(hit=0.0, read=extraction)
    answer = normalise(extraction, row.facts, list(row.options.values()))
    return Mark(hit=float(str(answer).strip() == str(row.gold).strip()), read=answer or "")


def _row(cells: Mapping[str, Any], path: Path, image: ImageSource) -> Row:
    where = f"{path}, '{cells['pid']}'"
    metadata = cells.get("metadata") or {}
    choices = cells.get("choices") or []
    kind = text_of(cells, "question_type", where)
    gold = text_of(cells, "answer", where)
    if kind == CHOICE and gold not in choices:
        raise DataError(f"its answer '{gold}' is none of its {len(choices)} choices", where=where)
    groups = {name: (str(metadata[name]),) for name in GROUPS if metadata.get(name) is not None}
    return Row(
        id=str(cells["pid"]),
        question=text_of(cells, "query", where),
        images={1: image},
        gold=gold,
        options=dict(zip(LETTERS, choices, strict=False)),
        split=str(metadata.get("split") or "testmini"),
        groups=groups
        | {"question type": (kind,), "answer type": (str(cells["answer_type"]),), "skill": _skills(metadata)},
        facts={
            "question_type": kind,
            "answer_type": text_of(cells, "answer_type", where),
            "precision": cells.get("precision"),
        },
    )


def _skills(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    skills: Sequence[Any] = metadata.get("skills") or ()
    return tuple(str(skill) for skill in skills)


MATHVISTA = Task(
    name="mathvista",
    title="MathVista",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="MathVista's own code, without its LLM",
    source=Source(
        files="the parquet files of testmini, or testmini.json with images/",
        licence="CC-BY-SA-4.0, not for training",
        repository="AI4Math/MathVista",
        revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
        patterns=("data/testmini-*.parquet",),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=by_rules(
        {OFFICIAL: official, VLMEVALKIT: vlmevalkit, LMMS: lmms},
        by_llm=ByLLM(benchmark=PROMPT, request=request, mark=mark_extraction),
    ),
)
