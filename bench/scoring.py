"""From replies to a labelled score: ids, marks of single rows, averages.

    replies + rows -> ids checked -> a Mark for each row -> Outcome -> Score with its labels

A row that no rule can read is wrong and counted apart, as `unparsed_rows` where the official code would ask
an LLM, as `random_rows` where it would draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.task import OFFICIAL, Choices, Outcome, Row, Task
from bench.types import Group, Score
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_bytes

NAMED = 3  # ids in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What one reply earned, and how."""

    hit: float
    read: str = ""  # what the rule took for the answer; empty: nothing
    unparsed: bool = False  # an LLM would be asked; wrong here
    random: bool = False  # the official code would draw; wrong here
    luck: float = 0.0  # what the draw would earn on average


Rule = Callable[[Row, str], Mark]


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
    rules: Mapping[str, Rule], *, macro: Mapping[str, str] | None = None
) -> Callable[[Sequence[Row], Mapping[str, str], Choices], Outcome]:
    """A task's `score` from rules that read one reply.

    Args:
        rules: compat -> rule.
        macro: compat -> kind of group whose means the score is the mean of; others: the mean of all rows.
    """

    def outcome(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
        rule = rules[choices.compat]
        marks = {row.id: rule(row, replies[row.id]) for row in rows}
        return average(rows, marks, macro=(macro or {}).get(choices.compat))

    return outcome


def average(rows: Sequence[Row], marks: Mapping[str, Mark], *, macro: str | None = None) -> Outcome:
    """The mean over rows, or over the means of one kind of group, and what is reported apart."""
    hits = {row.id: marks[row.id].hit for row in rows}
    groups = grouped(rows, hits)
    micro = sum(hits.values()) / len(hits)
    value = micro
    if macro is not None:
        means = [group.score for group in groups[macro].values()]
        value = sum(means) / len(means)
    details: dict[str, Any] = {"rows": len(rows)}
    unparsed = [name for name, mark in marks.items() if mark.unparsed]
    drawn = [name for name, mark in marks.items() if mark.random]
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
    read = {name: mark.read for name, mark in marks.items()}
    return Outcome(score=value, hits=hits, groups=groups, details=details, read=read)


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
