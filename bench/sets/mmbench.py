"""MMBench (MMB), English and Chinese, v1.0 and v1.1: the kit's prompt, and CircularEval over a TSV.

Where the official code would ask an LLM about a reply that its rules cannot read, the row counts wrong and
is reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench import tsv
from bench.prompt_parts import images_first, option_lines
from bench.rules import lmms_letters
from bench.rules.circular import OFFSET, cannot_rotate, check_groups, is_main, question_of, rotate
from bench.rules.option_letters import REFUSAL, infer_option
from bench.scoring import grouped, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Choices, Outcome, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

HINT_LINE = "Hint: {hint}\n"
QUESTION_LINE = "Question: {question}\n"
LAST_LINE = "Please select the correct answer from the options above. \n"
TEMPLATE = f"images, then {HINT_LINE}{QUESTION_LINE}Options:\n{{letter}}. {{text}}\n{LAST_LINE}"
# The names that MMBench's papers and boards use for its six abilities.
ABILITIES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
Reader = Callable[[str, Mapping[str, str]], str | None]
READERS: dict[str, Reader] = {
    OFFICIAL: infer_option,
    VLMEVALKIT: infer_option,  # the kit is MMBench's own
    LMMS: lmms_letters.mmbench_letter,
}


def load(path: Path) -> list[Row]:
    """Read a TSV of MMBench, with its rotations or with rotations made here.

    Raises:
        DataError: no such file, a column missing, a row or an image that cannot be used.
        BenchError: an index is there twice, or some rotations of a question are missing.
    """
    rows = [
        replace(row, unit=str(question_of(int(row.id))), groups=_groups_of(row))
        for row in tsv.read_rows(path)
    ]
    require_unique((row.id for row in rows), where=str(path))
    if all(is_main(int(row.id)) for row in rows):
        rows = [turned for row in rows for turned in _rotations(row)]
    check_groups(((int(row.id), row.options) for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """The kit's prompt, images first."""
    hint = row.facts.get("hint")
    text = HINT_LINE.format(hint=hint) if hint is not None else ""
    text += QUESTION_LINE.format(question=row.question)
    return images_first(row, f"{text}Options:\n{option_lines(row.options)}\n{LAST_LINE}")


def score(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
    """CircularEval: a question is right if each of its rows is; averages are over questions.

    Raises:
        BenchError: a question lacks rotations.
    """
    check_groups(((int(row.id), row.options) for row in rows), where="CircularEval")
    reader = READERS[choices.compat]
    letters = {row.id: reader(replies[row.id], row.options) for row in rows}
    right = {row.id: letters[row.id] == row.gold for row in rows}
    whole: dict[str, bool] = {}
    unread: dict[str, bool] = {}
    for row in rows:
        question = row.question_id
        whole[question] = whole.get(question, True) and right[row.id]
        # A question is lost to its unread rows alone if every row that could be read was right.
        readable_right = right[row.id] or letters[row.id] is None
        unread[question] = unread.get(question, True) and readable_right
    main = [row for row in rows if is_main(int(row.id))]
    hits = {row.id: float(whole[row.id]) for row in main}
    groups = grouped(main, hits)
    splits = sorted({row.split for row in main})
    if len(splits) > 1:
        for split in splits:
            of_split = grouped([row for row in main if row.split == split], hits)
            groups |= {f"{split} {kind}": members for kind, members in of_split.items() if kind != "split"}
    else:
        groups.pop("split")
    return Outcome(
        score=sum(hits.values()) / len(hits),
        hits=hits,
        groups=groups,
        read={name: letter or "" for name, letter in letters.items()},
        details={
            "rows": len(rows),
            "unparsed_rows": sum(letter is None for letter in letters.values()),
            "questions_lost_to_unparsed_rows": sum(unread[row.id] and not whole[row.id] for row in main),
            "refused_rows": sum(letter == REFUSAL for letter in letters.values()),
            "vanilla": sum(right[row.id] for row in main) / len(main),
            "vanilla_all_rows": sum(right.values()) / len(right),
        },
    )


def _groups_of(row: Row) -> dict[str, tuple[str, ...]]:
    ability = row.groups.get("l2-category", ())
    groups = {"l2-category": tuple(ABILITIES.get(name, name) for name in ability)} if ability else {}
    return (
        groups
        | {kind: names for kind, names in row.groups.items() if kind == "category"}
        | {"split": (row.split,)}
    )


def _rotations(row: Row) -> list[Row]:
    if cannot_rotate(row.options):
        return [row]
    assert isinstance(row.gold, str)
    turns = [rotate(row.options, row.gold, turn) for turn in range(len(row.options))]
    return [
        replace(row, id=str(int(row.id) + turn * OFFSET), options=turned.options, gold=turned.answer)
        for turn, turned in enumerate(turns)
    ]


def _in(language: str) -> Callable[[Path], list[Row]]:
    """`load`, and a file in the other language is refused."""

    def load_in(path: Path) -> list[Row]:
        rows = load(path)
        chinese = sum(any("一" <= letter <= "鿿" for letter in row.question) for row in rows)
        if (2 * chinese > len(rows)) != (language == "zh"):
            raise DataError(
                f"{chinese} of its {len(rows)} questions are in Chinese",
                where=path,
                fix="Is it the TSV of the other language?",
            )
        return rows

    return load_in


# As VLMEvalKit has them at e8e78f05.
MD5 = {
    "MMBench_DEV_EN.tsv": "b6caf1133a01c6bb705cf753bb527ed8",
    "MMBench_DEV_CN.tsv": "08b8fc3324a5ed74155350f57be69fbd",
    "MMBench_DEV_EN_V11.tsv": "30c05be8f2f347a50be25aa067248184",
    "MMBench_DEV_CN_V11.tsv": "593f9b5f6bea453d870a798b34ae4f37",
}


def _task(name: str, title: str, *, version: str, language: str, files: str) -> Task:
    return Task(
        name=name,
        title=title,
        version=version,
        language=language,
        template=TEMPLATE,
        rule="VLMEvalKit, MMBench's own kit",
        source=Source(
            files=f"{files}, a TSV",
            licence="Apache-2.0",
            urls=(f"https://opencompass.openxlab.space/utils/benchmarks/MMBench/{files}",),
            md5={files: MD5[files]},
        ),
        compats=tuple(READERS),
        load=_in(language),
        prompt=prompt,
        score=score,
    )


MMB = _task("mmb", "MMB", version="v1.0", language="en", files="MMBench_DEV_EN.tsv")
MMB_CN = _task("mmb_cn", "MMB-CN", version="v1.0", language="zh", files="MMBench_DEV_CN.tsv")
MMB_V11 = _task("mmb_v11", "MMB v1.1", version="v1.1", language="en", files="MMBench_DEV_EN_V11.tsv")
MMB_CN_V11 = _task("mmb_cn_v11", "MMB-CN v1.1", version="v1.1", language="zh", files="MMBench_DEV_CN_V11.tsv")
