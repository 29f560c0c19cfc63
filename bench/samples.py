"""The questions that a report shows, most informative first, within a budget of bytes.

    rows + answers + readings of each subject -> Seen -> ordered, cut to the budget -> values for the page

A question whose subjects disagree says more than one that both get; a reply that no rule could read says more
than one that was read. Benchmarks take turns, so that a large one does not crowd out a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

from bench.readings import Reading, read_readings
from bench.report import Report
from bench.run import read_answers
from bench.task import Row
from bench.tasks import TASKS
from bench.thumbnails import Thumbnails
from genrecal.core.errors import GenrecalError

# Of the room that the page's tables and plots leave, texts take at most this share and images the rest.
TEXT_SHARE = 0.2
RIGHT = 0.5  # a judge's grade from here on counts as right in the filters
# Characters of one text; a model that babbles must not fill the page.
QUESTION_LENGTH, REPLY_LENGTH, WORDS_LENGTH = 2000, 1200, 500
MOST_IMAGES = 8  # of one question


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A bench folder with its report."""

    folder: Path
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One question with every subject's replies."""

    benchmark: str
    rows: tuple[Row, ...]  # several for a CircularEval question, the main row first
    scores: tuple[float | None, ...]  # of each subject; None: unscored
    replies: tuple[Mapping[str, str], ...]  # of each subject, by row
    readings: tuple[Mapping[str, Reading], ...]

    @property
    def rank(self) -> int:
        """How informative it is, 0 the most: lost, won, in part, unread, both wrong, both right."""
        first, *others = self.scores
        known = [score for score in others if score is not None and first is not None]
        if first is not None and any(first >= RIGHT > score for score in known):
            return 0
        if first is not None and any(first < RIGHT <= score for score in known):
            return 1
        if any(score != first for score in known):
            return 2
        if any(one.read == "" for of in self.readings for one in of.values()):
            return 3
        return 4 if first is None or first < RIGHT else 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What the page holds, and what it leaves out."""

    samples: list[dict[str, Any]]
    images: Mapping[str, str]  # key -> data URI
    total: int  # questions in all
    left_out: int
    left_out_images: int
    notes: tuple[str, ...]  # sets whose questions cannot be shown, and why


NO_SAMPLES = Samples(samples=[], images={}, total=0, left_out=0, left_out_images=0, notes=())


def collect(opened: Sequence[Opened], *, room: int) -> Samples:
    """The samples of all benchmarks that the first subject was asked, and that every other was asked too.

    Args:
        opened: the subjects, the baseline first.
        room: bytes that texts and images may take in the page.
    """
    by_benchmark: list[list[Seen]] = []
    notes = []
    for name in opened[0].report.results:
        if any(name not in one.report.results for one in opened):
            continue
        try:
            seen = list(_seen(name, opened))
        except (GenrecalError, OSError) as error:
            notes.append(f"{opened[0].report.results[name].score.title}: {error}")
            continue
        by_benchmark.append(sorted(seen, key=lambda one: one.rank))
    ordered = list(_taking_turns(by_benchmark))
    chosen: list[tuple[Seen, dict[str, Any]]] = []
    spent = 0
    for one in ordered:
        sample = _values(one)
        # As it stands in the page, where signs of markup and letters outside ASCII are escapes.
        size = len(htmlsafe_json_dumps(sample)) + 16 * MOST_IMAGES
        if spent + size > TEXT_SHARE * room:
            break
        spent += size
        chosen.append((one, sample))
    thumbnails = Thumbnails(room - spent, samples=len(chosen))
    for one, sample in chosen:
        sources = list(one.rows[0].images.values())
        keys = [thumbnails.add(image) for image in sources[:MOST_IMAGES]]
        sample["images"] = [key for key in keys if key is not None]
        sample["images_left_out"] = len(sources) - len(sample["images"])
    samples = [sample for _, sample in chosen]
    return Samples(
        samples=samples,
        images=thumbnails.uris,
        total=len(ordered),
        left_out=len(ordered) - len(samples),
        left_out_images=sum(bool(sample["images_left_out"]) for sample in samples),
        notes=tuple(notes),
    )


def _seen(name: str, opened: Sequence[Opened]) -> Iterator[Seen]:
    path = Path(opened[0].report.results[name].path)
    replies = [{row: one.text for row, one in read_answers(each.folder, name).items()} for each in opened]
    readings = [read_readings(each.folder, name) for each in opened]
    questions: dict[str, list[Row]] = {}
    for row in TASKS[name].load(path):
        # With --limit, a part of the set was asked.
        if all(row.id in of for of in replies):
            questions.setdefault(row.question_id, []).append(row)
    for question, rows in questions.items():
        yield Seen(
            benchmark=name,
            rows=tuple(rows),
            scores=tuple(each.report.results[name].score.hits.get(question) for each in opened),
            replies=tuple({row.id: of[row.id] for row in rows} for of in replies),
            readings=tuple({row.id: of[row.id] for row in rows if row.id in of} for of in readings),
        )


def _taking_turns(lists: Sequence[Sequence[Seen]]) -> Iterator[Seen]:
    """Rank by rank, one of each benchmark in turn."""
    for rank in range(6):
        for turn in zip_longest(*([one for one in seen if one.rank == rank] for seen in lists)):
            yield from (one for one in turn if one is not None)


def _values(seen: Seen) -> dict[str, Any]:
    main = seen.rows[0]
    rows = []
    for row in seen.rows:
        of_row = [of.get(row.id) for of in seen.readings]
        rows.append(
            {
                "id": row.id,
                "gold": cut(_gold(row), REPLY_LENGTH),
                "replies": [cut(of[row.id], REPLY_LENGTH) for of in seen.replies],
                "read": [_cut_or_none(one.read if one else None, REPLY_LENGTH) for one in of_row],
                "words": [_cut_or_none(one.words if one else None, WORDS_LENGTH) for one in of_row],
            }
        )
    return {
        "benchmark": seen.benchmark,
        "id": main.question_id,
        "groups": [name for names in main.groups.values() for name in names],
        "question": cut(main.question, QUESTION_LENGTH),
        "options": [f"{letter}. {cut(text, REPLY_LENGTH)}" for letter, text in main.options.items()],
        "scores": list(seen.scores),
        "rows": rows,
    }


def cut(text: str, length: int) -> str:
    """A text, or its beginning with how much more there is."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text) - length} characters more)"


def _cut_or_none(text: str | None, length: int) -> str | None:
    return None if text is None else cut(text, length)


def _gold(row: Row) -> str:
    return row.gold if isinstance(row.gold, str) else " | ".join(dict.fromkeys(row.gold))
