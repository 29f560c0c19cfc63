"""MM-Vet and MM-Vet v2: a JSON and images -> bare questions -> a judge's grades -> the official averages.

A question counts in each of its capabilities, in its combination of them, and in the total; the figure is
the mean over the judge's runs. The column bears the judge's name: grades of two judges do not compare.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.judge import MOST_UNGRADED, Grade, JudgeItem, OfflineJudge
from bench.prompt_parts import images_first, images_in_place
from bench.task import OFFICIAL, Choices, Outcome, Row, Source, Task
from bench.types import Group, Query
from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.files import read_json
from genrecal.core.images import open_image

NAME, NAME_V2 = "mm-vet.json", "mm-vet-v2.json"
TEMPLATE = "image, then {question}"
TEMPLATE_V2 = "{question}, images where it names them"
# Round the name of an image in a question of v2.
IMAGE_MARK = "<IMG>"
IMAGE_ENDINGS = (".jpg", "jpeg", ".png")


def load(path: Path) -> list[Row]:
    """Read `mm-vet.json`, or the folder that holds it beside `images/`.

    Raises:
        DataError: no such file, no such form, an image that is missing or broken.
    """
    return _read(path, NAME, _row)


def load_v2(path: Path) -> list[Row]:
    """Read `mm-vet-v2.json`, or the folder that holds it beside `images/`.

    Raises:
        DataError: no such file, no such form, an image that is missing or broken.
    """
    return _read(path, NAME_V2, _row_v2)


def prompt(row: Row) -> Query:
    """The bare question after its image."""
    return images_first(row, row.question)


def score(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
    """Let the judge grade every reply `judge_runs` times and average."""
    judge = choices.judge or OfflineJudge()
    items = [
        JudgeItem(
            question=_asked(row),
            reference=str(row.gold),
            reply=replies[row.id],
            bordered=row.facts["version"] > 1,
        )
        for row in rows
    ]
    by_run = [
        dict(zip((row.id for row in rows), judge.grade(items, run=run), strict=True))
        for run in range(choices.judge_runs)
    ]
    ungraded = sum(grade.score is None for grades in by_run for grade in grades.values())
    complete = ungraded <= MOST_UNGRADED * len(rows) * choices.judge_runs
    totals = [_mean(grades, [row.id for row in rows]) for grades in by_run]
    complete = complete and all(total is not None for total in totals)
    known_totals = [total for total in totals if total is not None]
    hits = {}
    for row in rows:
        known = [value for grades in by_run if (value := grades[row.id].score) is not None]
        if known:
            hits[row.id] = statistics.fmean(known)
    return Outcome(
        score=statistics.fmean(known_totals) if complete else None,
        hits=hits,
        groups={kind: _groups(rows, by_run, kind) for kind in ("capability", "combination")},
        details={
            "runs": totals,
            "std_over_runs": statistics.pstdev(known_totals) if known_totals else None,
            "ungraded": ungraded,
            "complete": complete,
            "fully_right": sum(hit == 1.0 for hit in hits.values()) / len(rows),
            "judge": dict(judge.facts),
            **judge.beside(items),
        },
        judge=dict(judge.facts),
        words={row.id: "; ".join(_words(grades[row.id]) for grades in by_run) for row in rows},
        title=judge.title if rows[0].facts["version"] == 1 else judge.title.replace("MM-Vet", "MM-Vet v2"),
    )


def _asked(row: Row) -> str:
    """What the judge is shown of a question: v2 writes <image> where an image stands."""
    pieces = row.question.split(IMAGE_MARK) if row.facts["version"] > 1 else [row.question]
    return "".join("<image>" if piece.endswith(IMAGE_ENDINGS) else piece for piece in pieces)


def _words(grade: Grade) -> str:
    return f"{'unscored' if grade.score is None else grade.score}: {grade.reason}"


def _mean(grades: Mapping[str, Grade], ids: Sequence[str]) -> float | None:
    known = [value for name in ids if (value := grades[name].score) is not None]
    return statistics.fmean(known) if known else None


def _groups(rows: Sequence[Row], by_run: Sequence[Mapping[str, Grade]], kind: str) -> dict[str, Group]:
    members: dict[str, list[str]] = {}
    for row in rows:
        for name in row.groups[kind]:
            members.setdefault(name, []).append(row.id)
    groups = {}
    for name, ids in sorted(members.items()):
        means = [mean for grades in by_run if (mean := _mean(grades, ids)) is not None]
        if means:
            groups[name] = Group(n=len(ids), score=statistics.fmean(means))
    return groups


def _read(path: Path, name: str, row_of: Callable[[str, Mapping[str, Any], Path], Row]) -> list[Row]:
    file = path / name if path.is_dir() else path
    try:
        content = read_json(file)
    except GenrecalError as error:
        raise DataError(error.what, where=file, fix=f"Name {name} or its folder") from None
    if not isinstance(content, dict) or not content:
        raise DataError("holds no questions", where=file)
    return [row_of(key, _checked(row, f"{file}, '{key}'"), file) for key, row in content.items()]


def _checked(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError("is no mapping", where=where)
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str):
            raise DataError(f"has no text '{field}'", where=where)
    capabilities = row.get("capability")
    if not isinstance(capabilities, list) or not all(isinstance(one, str) for one in capabilities):
        raise DataError("its capability is no list of names", where=where)
    return row


def _row(name: str, cells: Mapping[str, Any], file: Path, *, version: int = 1) -> Row:
    if version == 1 and not isinstance(cells.get("imagename"), str):
        raise DataError("has no text 'imagename'", where=f"{file}, '{name}'")
    names = [cells["imagename"]] if version == 1 else _image_names(cells["question"])
    images = {number: file.parent / "images" / image for number, image in enumerate(names, start=1)}
    for image in images.values():
        # Decoded once before the run: a broken image must not end it after hours.
        open_image(image)
    capabilities = tuple(dict.fromkeys(cells["capability"]))
    return Row(
        id=name,
        question=cells["question"],
        images=images,
        gold=cells["answer"],
        split=name.split("_")[0],
        groups={"capability": capabilities, "combination": ("+".join(sorted(capabilities)),)},
        facts={"version": version},
    )


_row_v2 = partial(_row, version=2)


def prompt_v2(row: Row) -> Query:
    """The question with its images where it names them."""
    numbers = iter(row.images)
    pieces = [
        f"<image {next(numbers)}>" if piece.endswith(IMAGE_ENDINGS) else piece
        for piece in row.question.split(IMAGE_MARK)
    ]
    return images_in_place(row, "".join(pieces))


def _image_names(question: str) -> list[str]:
    return [piece for piece in question.split(IMAGE_MARK) if piece.endswith(IMAGE_ENDINGS)]


MMVET = Task(
    name="mmvet",
    title="MM-Vet",
    version="v1",
    language="en",
    template=TEMPLATE,
    rule="MM-Vet's own averages over a judge's grades",
    source=Source(
        files=f"{NAME} with images/",
        licence="CC-BY-NC-4.0 (the code: Apache-2.0)",
        urls=("https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",),
    ),
    compats=(OFFICIAL,),
    load=load,
    prompt=prompt,
    score=score,
)
MMVET_V2 = Task(
    name="mmvet_v2",
    title="MM-Vet v2",
    version="v2",
    language="en",
    template=TEMPLATE_V2,
    rule="MM-Vet's own averages over a judge's grades",
    source=Source(
        files=f"{NAME_V2} with images/",
        licence="CC-BY-NC-4.0 (the code: Apache-2.0)",
        urls=("https://github.com/yuweihao/MM-Vet/releases/download/v2/mm-vet-v2.zip",),
    ),
    compats=(OFFICIAL,),
    load=load_v2,
    prompt=prompt_v2,
    score=score,
)
