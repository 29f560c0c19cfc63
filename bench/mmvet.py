"""MM-Vet: mm-vet.json and images -> bare questions -> a judge's grades, averaged as the official code does.

A question counts in each of its capabilities, in its combination of them, and in the total; the figure is
the mean over the judge's runs. The column bears the judge's name: grades of two judges do not compare.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.judge import Grade, Judge, JudgeItem
from bench.types import Group, Query, Score
from genrecal.core.errors import BenchError, DataError, GenrecalError
from genrecal.core.files import read_json
from genrecal.core.images import open_image

NAME = "mm-vet.json"
PROMPT_TEMPLATE = "image, then {question}"
# With more ungraded questions than this share, the rest says too little about the whole.
MOST_UNGRADED = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One open question about one image."""

    id: str
    question: str
    reference: str  # with <AND> and <OR>
    capabilities: tuple[str, ...]
    image: Path


def load(path: Path) -> list[Question]:
    """Read `mm-vet.json`, or the folder that holds it beside `images/`.

    Raises:
        DataError: no such file, no such form, an image that is missing or broken.
    """
    file = path / NAME if path.is_dir() else path
    try:
        content = read_json(file)
    except GenrecalError as error:
        raise DataError(error.what, where=file, fix=f"Name MM-Vet's {NAME} or its folder") from None
    if not isinstance(content, dict) or not content:
        raise DataError("holds no questions", where=file)
    return [_question(name, row, file) for name, row in content.items()]


def as_query(question: Question) -> Query:
    """The bare question after its image."""
    return Query(id=question.id, parts=(open_image(question.image), question.question))


def score(questions: Sequence[Question], replies: Mapping[str, str], judge: Judge, *, runs: int = 1) -> Score:
    """Let the judge grade every reply `runs` times and average.

    Args:
        questions: what `load` gave.
        replies: id -> raw reply.
        judge: grades a reply from 0 to 1, or says that it could not.
        runs: 5 in the paper.

    Raises:
        BenchError: a question has no reply.
    """
    if not questions:
        raise BenchError("there are no questions to score", where="MM-Vet")
    missing = [question.id for question in questions if question.id not in replies]
    if missing:
        raise BenchError(
            f"{len(missing)} questions have no answer (the first: '{missing[0]}')", where="MM-Vet"
        )
    items = [
        JudgeItem(question=question.question, reference=question.reference, reply=replies[question.id])
        for question in questions
    ]
    by_run = [
        dict(zip((question.id for question in questions), judge.grade(items, run=run), strict=True))
        for run in range(runs)
    ]
    ungraded = sum(grade.score is None for grades in by_run for grade in grades.values())
    complete = ungraded <= MOST_UNGRADED * len(questions) * runs
    totals = [_mean(grades, [question.id for question in questions]) for grades in by_run]
    complete = complete and all(total is not None for total in totals)
    known_totals = [total for total in totals if total is not None]
    hits = {}
    for question in questions:
        known = [score for grades in by_run if (score := grades[question.id].score) is not None]
        if known:
            hits[question.id] = statistics.fmean(known)
    return Score(
        title=judge.title,
        score=statistics.fmean(known_totals) if complete else None,
        n=len(questions),
        split=questions[0].id.split("_")[0],
        groups={
            "capability": _groups(questions, by_run, lambda question: question.capabilities),
            "combination": _groups(questions, by_run, lambda q: ("+".join(sorted(q.capabilities)),)),
        },
        hits=hits,
        details={
            "runs": totals,
            "std_over_runs": statistics.pstdev(known_totals) if known_totals else None,
            "ungraded": ungraded,
            "complete": complete,
            "fully_right": sum(hit == 1.0 for hit in hits.values()) / len(questions),
            "judge": dict(judge.facts),
        },
    )


def _mean(grades: Mapping[str, Grade], ids: Sequence[str]) -> float | None:
    known = [score for name in ids if (score := grades[name].score) is not None]
    return statistics.fmean(known) if known else None


def _groups(
    questions: Sequence[Question], by_run: Sequence[Mapping[str, Grade]], key: Any
) -> dict[str, Group]:
    members: dict[str, list[str]] = {}
    for question in questions:
        for name in set(key(question)):
            members.setdefault(name, []).append(question.id)
    groups = {}
    for name, ids in sorted(members.items()):
        means = [mean for grades in by_run if (mean := _mean(grades, ids)) is not None]
        if means:
            groups[name] = Group(n=len(ids), score=statistics.fmean(means))
    return groups


def _question(name: str, row: Any, file: Path) -> Question:
    where = f"{file}, '{name}'"
    if not isinstance(row, dict):
        raise DataError("is no mapping", where=where)
    for field in ("imagename", "question", "answer"):
        if not isinstance(row.get(field), str):
            raise DataError(f"has no text '{field}'", where=where)
    capabilities = row.get("capability")
    if not isinstance(capabilities, list) or not all(isinstance(one, str) for one in capabilities):
        raise DataError("its capability is no list of names", where=where)
    image = file.parent / "images" / row["imagename"]
    # Decoded once before the run: a broken image must not end it after hours.
    open_image(image)
    return Question(
        id=name,
        question=row["question"],
        reference=row["answer"],
        capabilities=tuple(capabilities),
        image=image,
    )
