"""From replies to a labelled score: ids, marks of single rows, averages.

    replies + rows -> ids checked -> a Mark for each row -> Outcome -> Score with its labels

A row that no rule can read is wrong and counted apart, as `unparsed_rows` where the official code would ask
an LLM, as `random_rows` where it would draw. Where an LLM was asked and nothing came of it, the row is
unscored, and in no mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.extraction import Extraction, ExtractionPrompt, Reader, Request
from bench.judge import MOST_UNGRADED
from bench.task import OFFICIAL, Choices, Outcome, Row, Task
from bench.types import Group, Score
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_bytes

NAMED = 3  # ids in an error
CODE_ALONE = "code alone; the official code asks an LLM too"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What one reply earned, and how."""

    hit: float
    read: str = ""  # what the rule took for the answer; empty: nothing
    unparsed: bool = False  # an LLM would be asked; wrong here
    random: bool = False  # the official code would draw; wrong here
    luck: float = 0.0  # what the draw would earn on average
    unscored: bool = False  # an LLM was asked, and nothing came of it; never a zero


Rule = Callable[[Row, str], Mark]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLLM:
    """How an LLM reads what a benchmark's own code does not."""

    benchmark: str  # whose prompt
    request: Callable[[Row, str, ExtractionPrompt], Request | None]  # None: code reads this reply
    mark: Callable[[Row, str], Mark]  # an extraction


def score(
    task: Task, rows: Sequence[Row], replies: Mapping[str, str], choices: Choices, *, generation: str
) -> Score:
    """The score of `score_and_outcome` alone."""
    return score_and_outcome(task, rows, replies, choices, generation=generation)[0]


def score_and_outcome(
    task: Task, rows: Sequence[Row], replies: Mapping[str, str], choices: Choices, *, generation: str
) -> tuple[Score, Outcome]:
    """Score replies and label the score with all that was chosen.

    Args:
        task: whose rows these are.
        rows: what its `load` gave.
        replies: row id -> raw reply, one for each row and no others.
        choices: the rule, the judge.
        generation: "model" for the subject's own settings, "greedy".

    Raises:
        BenchError: ids that are missing, unknown or there twice; a rule that the task does not have.
    """
    if choices.compat not in task.compats:
        raise BenchError(
            f"has no rule '{choices.compat}'",
            where=task.title,
            fix=f"Known for it: {', '.join(task.compats)}",
        )
    require_unique((row.id for row in rows), where=task.title)
    require_answers(rows, replies, where=task.title)
    outcome = task.score(rows, replies, choices)
    labelled = Score(
        title=column(outcome.title or task.title, choices.compat),
        benchmark=task.name,
        version=task.version,
        split="+".join(sorted({row.split for row in rows})),
        language=task.language,
        compat=choices.compat,
        prompt_sha256=template_sha256(task),
        generation=generation,
        judge=outcome.judge,
        score=outcome.score,
        n=len({row.question_id for row in rows}),
        groups=outcome.groups,
        hits=outcome.hits,
        details={"rule": task.rule if choices.compat == OFFICIAL else choices.compat, **outcome.details},
    )
    return labelled, outcome


def column(title: str, compat: str) -> str:
    """A column's name; scores by another rule than the official one stand in a column of their own."""
    return title if compat == OFFICIAL else f"{title} ({compat})"


def template_sha256(task: Task) -> str:
    return sha256_bytes(task.template.encode())


def require_unique(ids: Iterable[str], *, where: str) -> None:
    """Refuse ids that stand there twice, naming them.

    Raises:
        BenchError: there are such ids.
    """
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise BenchError(f"{len(twice)} ids stand there twice ({_named(twice)})", where=where)


def require_answers(rows: Sequence[Row], replies: Mapping[str, str], *, where: str) -> None:
    """Refuse replies that are missing, or that answer no row, naming them.

    Raises:
        BenchError: there are no rows, or such replies.
    """
    if not rows:
        raise BenchError("there are no questions to score", where=where)
    missing = [row.id for row in rows if row.id not in replies]
    if missing:
        raise BenchError(f"{len(missing)} questions have no answer ({_named(missing)})", where=where)
    unknown = sorted(replies.keys() - {row.id for row in rows})
    if unknown:
        raise BenchError(f"{len(unknown)} answers belong to no question ({_named(unknown)})", where=where)


def by_rules(
    rules: Mapping[str, Rule], *, macro: Mapping[str, str] | None = None, by_llm: ByLLM | None = None
) -> Callable[[Sequence[Row], Mapping[str, str], Choices], Outcome]:
    """A task's `score` from rules that read one reply.

    Args:
        rules: compat -> rule.
        macro: compat -> kind of group whose means the score is the mean of; others: the mean of all rows.
        by_llm: what the official rule asks of an LLM, where there is one.
    """

    def outcome(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
        rule, kind = rules[choices.compat], (macro or {}).get(choices.compat)
        marks = {row.id: rule(row, replies[row.id]) for row in rows}
        if by_llm is None or choices.compat != OFFICIAL:
            return average(rows, marks, macro=kind)
        if choices.reader is None:
            found = average(rows, marks, macro=kind)
            return replace(found, details={**found.details, "extraction": CODE_ALONE})
        extracted = _extracted(rows, replies, by_llm, choices.reader)
        marks |= {name: _marked(row, one, by_llm) for name, (row, one) in extracted.items()}
        found = average(rows, marks, macro=kind)
        facts = dict(choices.reader.facts(by_llm.benchmark))
        how = {"rule": f"its own code, replies read by {facts['judge']}", "extraction": facts["judge"]}
        return replace(
            found,
            details={**found.details, **how, "rows_read_by_llm": len(extracted)},
            judge=facts,
            words={name: one.reason for name, (_, one) in extracted.items()},
        )

    return outcome


def _extracted(
    rows: Sequence[Row], replies: Mapping[str, str], by_llm: ByLLM, reader: Reader
) -> dict[str, tuple[Row, Extraction]]:
    """What the LLM read in each reply that code does not read."""
    prompt = reader.prompt(by_llm.benchmark)
    asked = [(row, by_llm.request(row, replies[row.id], prompt)) for row in rows]
    known = [(row, request) for row, request in asked if request is not None]
    found = reader.read(by_llm.benchmark, [request for _, request in known])
    return {row.id: (row, one) for (row, _), one in zip(known, found, strict=True)}


def _marked(row: Row, extraction: Extraction, by_llm: ByLLM) -> Mark:
    return Mark(hit=0.0, unscored=True) if extraction.text is None else by_llm.mark(row, extraction.text)


def average(rows: Sequence[Row], marks: Mapping[str, Mark], *, macro: str | None = None) -> Outcome:
    """The mean over rows, or over the means of one kind of group, and what is reported apart.

    Unscored rows are left out; with too many of them there is no score.
    """
    unscored = [name for name, mark in marks.items() if mark.unscored]
    scored = [row for row in rows if not marks[row.id].unscored]
    hits = {row.id: marks[row.id].hit for row in scored}
    groups = grouped(scored, hits)
    micro = sum(hits.values()) / len(hits) if hits else 0.0
    value = micro
    if macro is not None and hits:
        means = [group.score for group in groups[macro].values()]
        value = sum(means) / len(means)
    details: dict[str, Any] = {"rows": len(rows)}
    unparsed = [name for name, mark in marks.items() if mark.unparsed]
    drawn = [name for name, mark in marks.items() if mark.random]
    if unscored:
        details |= {"ungraded": len(unscored), "ungraded_row_ids": unscored}
    if unparsed:
        details |= {"unparsed_rows": len(unparsed), "unparsed_row_ids": unparsed}
    if drawn:
        luck = sum(mark.luck for mark in marks.values() if mark.random)
        details |= {
            "random_rows": len(drawn),
            "random_rows_right_by_luck": round(luck, 1),
            "random_row_ids": drawn,
            "official_random": False,
        }
    if macro is not None:
        details |= {"mean_of": macro, "mean_of_rows": micro}
    read = {row.id: marks[row.id].read for row in scored}
    complete = len(unscored) <= MOST_UNGRADED * len(rows)
    return Outcome(score=value if complete else None, hits=hits, groups=groups, details=details, read=read)


def grouped(rows: Sequence[Row], hits: Mapping[str, float]) -> dict[str, dict[str, Group]]:
    """The means of every group of every kind; a row may be in several groups of a kind."""
    members: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for kind, names in row.groups.items():
            for name in names:
                members.setdefault(kind, {}).setdefault(name, []).append(hits[row.id])
    return {
        kind: {name: Group(n=len(of), score=sum(of) / len(of)) for name, of in sorted(named.items())}
        for kind, named in members.items()
    }


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(f"'{name}'" for name in ids[:NAMED]) + more
