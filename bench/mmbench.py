"""MMBench (MMB): the kit's prompt and CircularEval over the rows of the TSV.

Where the official code would ask an LLM about a reply that its rules cannot read, the row counts wrong and
is reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.circular import check_groups, is_main, question_of
from bench.mmbench_tsv import Row, load
from bench.option_letters import REFUSAL, infer_option
from bench.types import Group, Query, Score
from genrecal.core.errors import BenchError
from genrecal.core.images import open_image

__all__ = ["PROMPT_TEMPLATE", "Row", "as_query", "load", "score"]

TITLE = "MMB"
HINT_LINE = "Hint: {hint}\n"
QUESTION_LINE = "Question: {question}\n"
OPTION_LINE = "{letter}. {text}\n"
LAST_LINE = "Please select the correct answer from the options above. \n"
PROMPT_TEMPLATE = f"images, then {HINT_LINE}{QUESTION_LINE}Options:\n{OPTION_LINE}{LAST_LINE}"
# The names that MMBench's papers and boards use for its six abilities.
ABILITIES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


def as_query(row: Row) -> Query:
    """The kit's prompt, images first."""
    text = HINT_LINE.format(hint=row.hint) if row.hint is not None else ""
    text += QUESTION_LINE.format(question=row.question) + "Options:\n"
    text += "".join(OPTION_LINE.format(letter=letter, text=option) for letter, option in row.options.items())
    images = [open_image(data, name=f"image of row {row.index}") for data in row.images]
    return Query(id=row.id, parts=(*images, text + LAST_LINE))


def score(rows: Sequence[Row], replies: Mapping[str, str]) -> Score:
    """CircularEval: a question is right if each of its rows is; averages are over questions.

    Args:
        rows: what `load` gave.
        replies: row id -> raw reply.

    Raises:
        BenchError: a row has no reply, or a question lacks rotations.
    """
    if not rows:
        raise BenchError("there are no rows to score", where=TITLE)
    missing = [row.id for row in rows if row.id not in replies]
    if missing:
        raise BenchError(f"{len(missing)} rows have no answer (the first: {missing[0]})", where=TITLE)
    check_groups(((row.index, row.options) for row in rows), where=TITLE)
    letters = {row.index: infer_option(replies[row.id], row.options) for row in rows}
    right = {row.index: letters[row.index] == row.answer for row in rows}
    whole: dict[int, bool] = {}
    unread: dict[int, bool] = {}
    for row in rows:
        question = question_of(row.index)
        whole[question] = whole.get(question, True) and right[row.index]
        # A question is lost to its unread rows alone if every row that could be read was right.
        readable_right = right[row.index] or letters[row.index] is None
        unread[question] = unread.get(question, True) and readable_right
    main = [row for row in rows if is_main(row.index)]
    hits = {row.id: float(whole[row.index]) for row in main}
    splits = sorted({row.split for row in main})
    groups = {
        "l2-category": _groups(main, hits, _ability),
        "category": _groups(main, hits, _category),
    }
    if len(splits) > 1:
        groups["split"] = _groups(main, hits, lambda row: row.split)
        for split in splits:
            of_split = [row for row in main if row.split == split]
            for kind, key in (("l2-category", _ability), ("category", _category)):
                groups[f"{split} {kind}"] = _groups(of_split, hits, key)
    return Score(
        title=TITLE,
        score=sum(hits.values()) / len(hits),
        n=len(hits),
        split="+".join(splits),
        groups={kind: members for kind, members in groups.items() if members},
        hits=hits,
        details={
            "rows": len(rows),
            "unparsed_rows": sum(letter is None for letter in letters.values()),
            "questions_lost_to_unparsed_rows": sum(
                unread[row.index] and not whole[row.index] for row in main
            ),
            "refused_rows": sum(letter == REFUSAL for letter in letters.values()),
            "vanilla": sum(right[row.index] for row in main) / len(main),
            "vanilla_all_rows": sum(right.values()) / len(right),
        },
    )


def _ability(row: Row) -> str | None:
    return ABILITIES.get(row.ability or "", row.ability)


def _category(row: Row) -> str | None:
    return row.category


def _groups(
    rows: Sequence[Row], hits: Mapping[str, float], key: Callable[[Row], str | None]
) -> dict[str, Group]:
    members: dict[str, list[float]] = {}
    for row in rows:
        name = key(row)
        if name is not None:
            members.setdefault(name, []).append(hits[row.id])
    return {name: Group(n=len(of), score=sum(of) / len(of)) for name, of in sorted(members.items())}
