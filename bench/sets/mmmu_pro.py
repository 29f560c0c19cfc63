"""MMMU-Pro: the same subjects with up to ten options, and with question and options inside the image.

Of a folder with several settings the score is the mean of "standard (10 options)" and "vision"; each setting
is a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.kit_letters import kit_letters
from bench.parquet import image_of, numbered_images, options_of, parquet_files, read_cells, text_of
from bench.prompt_parts import images_first, images_in_place, option_lines, require_named_images
from bench.rules.mmmu_domains import DOMAIN_OF, OTHER_DOMAIN
from bench.rules.mmmu_parse import parse_choice_pro
from bench.scoring import Mark, by_rules, require_unique
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Choices, Outcome, Row, Source, Task
from bench.types import Query
from genrecal.core.errors import DataError

STANDARD_10, STANDARD_4, VISION = "standard-10", "standard-4", "vision"
HEADLINE = (STANDARD_10, VISION)
STANDARD_PROMPT = "{question}\n{options}\nAnswer with the option letter from the given choices directly."
VISION_PROMPT = (
    "Answer with the option letter from the given choices directly. The last line of your response should be "
    "of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
)
TEMPLATE = "\n---\n".join((STANDARD_PROMPT, "{letter}. {text}", VISION_PROMPT, "images at their <image N>"))
MOST_IMAGES = 7
FEW = 4  # options of the easier setting


def load(path: Path) -> list[Row]:
    """Read one parquet file, or all in a folder; the same question may come in several settings.

    Raises:
        DataError: no such file, no parquet, a column missing, a row that cannot be used.
        BenchError: an id is there twice in a setting.
    """
    rows = []
    for file in parquet_files(path, part="test"):
        cells = read_cells(file, columns=("id", "options", "answer"))
        setting = _setting(cells)
        rows += [_row(cell, file, setting) for cell in cells]
    require_unique((row.id for row in rows), where=str(path))
    return rows


def prompt(row: Row) -> Query:
    """The direct prompts of mmmu-pro/prompts.yaml; a screenshot comes before its instruction."""
    if row.facts["setting"] == VISION:
        return images_first(row, VISION_PROMPT)
    text = STANDARD_PROMPT.format(question=row.question, options=option_lines(row.options))
    return images_in_place(row, text)


def official(row: Row, reply: str) -> Mark:
    """MMMU-Pro's own evaluator."""
    return _mark(row, parse_choice_pro(reply, row.options))


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval: no look at "Answer:"; of a screenshot's reply, nothing but the gold letter is right."""
    if row.facts["setting"] == VISION:
        return Mark(hit=float(reply == row.gold), read=reply)
    return _mark(row, parse_choice_pro(reply, row.options, answer_mark=False))


def score(rows: Sequence[Row], replies: Mapping[str, str], choices: Choices) -> Outcome:
    """The mean of the two headline settings where both are there, else of all rows."""
    outcome = by_rules({OFFICIAL: official, VLMEVALKIT: kit_letters, LMMS: lmms})(rows, replies, choices)
    settings = outcome.groups["setting"]
    if all(name in settings for name in HEADLINE):
        value = sum(settings[name].score for name in HEADLINE) / len(HEADLINE)
        details = {**outcome.details, "mean_of": " and ".join(HEADLINE), "mean_of_rows": outcome.score}
        return replace(outcome, score=value, details=details)
    return outcome


def _mark(row: Row, letter: str | None) -> Mark:
    if letter is None:
        return Mark(hit=0.0, random=True, luck=1 / len(row.options))
    return Mark(hit=float(letter == row.gold), read=letter)


def _setting(cells: Sequence[Mapping[str, Any]]) -> str:
    """A file is of one setting: screenshots have no question, the easier one has at most four options."""
    if "question" not in cells[0]:
        return VISION
    most = max(len(options_of(cell["options"], "options")) for cell in cells)
    return STANDARD_4 if most <= FEW else STANDARD_10


def _row(cells: Mapping[str, Any], path: Path, setting: str) -> Row:
    name = text_of(cells, "id", str(path))
    where = f"{path}, '{name}'"
    options = options_of(cells["options"], where)
    gold = text_of(cells, "answer", where)
    if gold not in options:
        raise DataError(f"its answer '{gold}' is none of its {len(options)} options", where=where)
    vision = setting == VISION
    subject = str(cells.get("subject") or "_".join(name.split("_")[1:-1]))
    row = Row(
        id=f"{setting} {name}",
        question="" if vision else text_of(cells, "question", where),
        images={1: image_of(cells["image"], where)}
        if vision
        else numbered_images(cells, where, most=MOST_IMAGES),
        gold=gold,
        options=options,
        split=setting,
        groups={
            "setting": (setting,),
            "subject": (subject,),
            "domain": (DOMAIN_OF.get(subject, OTHER_DOMAIN),),
        },
        facts={"setting": setting},
    )
    if not vision:
        require_named_images(row, where)
    return row


MMMU_PRO = Task(
    name="mmmu_pro",
    title="MMMU-Pro",
    version="1",
    language="en",
    template=TEMPLATE,
    rule="MMMU-Pro's own evaluator",
    source=Source(
        files="the parquet files of its settings",
        licence="Apache-2.0",
        repository="MMMU/MMMU_Pro",
        revision="b037bbe72fe851ae9c9a792c7b34722542d4dc78",
        patterns=("standard (10 options)/*.parquet", "vision/*.parquet"),
    ),
    compats=(OFFICIAL, VLMEVALKIT, LMMS),
    load=load,
    prompt=prompt,
    score=score,
)
