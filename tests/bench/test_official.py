"""Our scores against the official scorers' on rows made to be awkward, row by row.

The rows and the official results are data (benchmarks/official/run.py made them); what differs, and why,
is in docs/scoring.md, and its count here.
"""

from __future__ import annotations

import gzip
import json
import string
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.extraction import OWN_PROMPTS
from bench.judge import Grade
from bench.scoring import score
from bench.sets import blink, mathvista, mmmu
from bench.task import COMPATS, LMMS, OFFICIAL, VLMEVALKIT, Choices, Row
from bench.tasks import TASKS
from bench.types import Score
from tests.bench import awkward

DATA = Path(__file__).parent / "data" / "official"
LLM, DRAWS = "llm", "draws"
CHOICE_SETS = ("mmmu_pro", "mmstar", "ai2d", "blink", "seed_bench_2_plus")
ANNOTATED_SETS = ("vqav2", "ok_vqa", "textvqa")

# Rows in which we differ, by benchmark and rule: docs/scoring.md says why.
DISAGREEMENTS: dict[tuple[str, str], int] = {
    ("mmmu", LMMS): 12,  # open questions whose answer is empty
    ("blink", OFFICIAL): 86,  # mappings that are not the bare "(A)"
}

# The generators that made the rows: they give the same rows again.
ROWS = {
    "mmb": lambda: awkward.circular_rows(1),
    "mmmu": lambda: awkward.open_rows(2),
    "mmmu_pro": lambda: awkward.choice_rows(3, fewest=4, most=10),
    "mmstar": lambda: awkward.choice_rows(4, fewest=4, most=4),
    "ai2d": lambda: awkward.choice_rows(5, fewest=3, most=4),
    "seed_bench_2_plus": lambda: awkward.choice_rows(6, fewest=4, most=4),
    "blink": lambda: awkward.choice_rows(8, fewest=2, most=4),
    "chartqa": lambda: awkward.short_rows(11),
    "mathvista": lambda: awkward.mathvista_rows(12),
    "vqav2": lambda: awkward.annotated_rows(13),
    "ok_vqa": lambda: awkward.annotated_rows(14),
    "textvqa": lambda: awkward.annotated_rows(15),
    "refcoco_plus": lambda: awkward.box_rows(16),
    "mmvet": lambda: awkward.graded_rows(17),
}


@cache
def data(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def lettered(options: Sequence[str]) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, options, strict=False))


def choice(name: str, options: Sequence[str], gold: Any, **more: Any) -> Row:
    return Row(
        id=str(name), question="?", images={}, gold=gold, options=lettered(options), split="test", **more
    )


def rows_of(name: str) -> tuple[list[Row], dict[str, str]]:
    """A benchmark's rows and replies, from the lists that are kept."""
    rows = []
    kept = data(name)["rows"]
    for number, (key, *of) in enumerate(kept):
        more: dict[str, Any] = {}
        if name == "mmmu":
            subject = mmmu.subject_of(key, key)[1]
            more = {"facts": {"subject": subject}, "groups": mmmu.groups_of(subject, "any")}
            gold = tuple(of[1]) if isinstance(of[1], list) else of[1]
            rows.append(choice(key, of[0], gold, **more))
        elif name == "mathvista":
            kind, answer_type, choices, precision, gold, _ = of
            facts = {"question_type": kind, "answer_type": answer_type, "precision": precision}
            rows.append(choice(key, choices or [], gold, facts=facts))
        elif name in ANNOTATED_SETS:
            rows.append(choice(key, [], tuple(of[0])))
        elif name == "chartqa":
            rows.append(choice(key, [], of[0]))
        elif name == "refcoco_plus":
            split, width, height, (left, top, across, down), _ = of
            facts = {"box": (left, top, left + across, top + down), "size": (width, height)}
            rows.append(choice(key, [], "box", facts=facts, groups={"split": (split,)}))
        elif name == "mmb":
            index = int(key)
            groups = {
                "split": ("dev",),
                "l2-category": (f"ability {index % 3}",),
                "category": (f"skill {index % 7}",),
            }
            rows.append(choice(key, of[0], of[1], unit=str(index % 10**6), groups=groups))
        else:
            category, skill = ("all", "all")
            if name == "mmstar":
                category, skill = data(name)["skills"][number % 18]
            groups = {
                "category": (category,),
                "l2_category": (skill,),
                "task": ("all",),
                "setting": ("standard-10",),
            }
            rows.append(choice(key, of[0], of[1], groups=groups, facts={"setting": "standard-10"}))
    return rows, {str(one[0]): one[-1] for one in kept}


@cache
def scored(name: str, compat: str) -> Score:
    rows, replies = rows_of(name)
    if (name, compat) == ("realworldqa", VLMEVALKIT):
        rows = [row for row in rows if row.options]  # what the kit has
        replies = {row.id: replies[row.id] for row in rows}
    return score(TASKS[name], rows, replies, Choices(compat=compat), generation="greedy")


def decided(result: Score) -> dict[str, float | str]:
    """Hits, and for rows that are counted apart what the official code would do instead."""
    found: dict[str, float | str] = dict(result.hits)
    found |= dict.fromkeys(result.details.get("unparsed_row_ids", ()), LLM)
    return found | dict.fromkeys(result.details.get("random_row_ids", ()), DRAWS)


def by_id(name: str, compat: str) -> Mapping[str, float | str]:
    official = data(name)[compat]
    if isinstance(official, dict):
        return official
    rows = data(name)["rows"]
    if (name, compat) == ("realworldqa", VLMEVALKIT):
        rows = [row for row in rows if row[1]]
    return dict(zip((row[0] for row in rows), official, strict=True))


CASES = [
    (name, compat)
    for name in [*ROWS, "realworldqa"]
    for compat in COMPATS
    if name != "mmvet"
    and compat in TASKS[name].compats
    and (name, compat) not in (("mmb", VLMEVALKIT), ("blink", OFFICIAL))
]


@pytest.mark.parametrize(("name", "compat"), CASES)
def test_every_row_scores_as_the_official_code_scores_it(name, compat):
    ours, official = decided(scored(name, compat)), by_id(name, compat)
    assert ours.keys() == official.keys() and len(data(name)["rows"]) >= 2000
    different = [
        key
        for key, hit in official.items()
        if (ours[key] != pytest.approx(hit) if isinstance(hit, float) else ours[key] != hit)
    ]
    assert len(different) == DISAGREEMENTS.get((name, compat), 0), different[:5]


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_are_those_of_the_generator(name):
    assert json.loads(json.dumps(ROWS[name]())) == data(name)["rows"]


def test_circular_eval_by_ability_and_category():
    result, totals = scored("mmb", OFFICIAL), data("mmb")["totals"]
    assert totals["Overall"] == pytest.approx(result.score) and len(result.hits) == 800
    for members in (result.groups["l2-category"], result.groups["category"]):
        for group, found in members.items():
            assert found.score == pytest.approx(totals[group])


def test_mmstars_sum():
    result = scored("mmstar", OFFICIAL)
    assert sum(result.hits.values()) == data("mmstar")["totals"]["right"]
    skills = [group.score for group in scored("mmstar", LMMS).groups["l2_category"].values()]
    assert scored("mmstar", LMMS).score == pytest.approx(sum(skills) / len(skills)) and len(skills) == 18


def test_blinks_own_code_reads_what_it_reads_without_its_llm():
    """Where it asks its LLM our score has VLMEvalKit's letters, and a judge's endpoint is asked."""
    (rows, replies), official = rows_of("blink"), data("blink")["own"]
    found, kit = scored("blink", OFFICIAL), scored("blink", VLMEVALKIT)
    asked = 0
    for row, hit in zip(rows, official, strict=True):
        request = blink.request(row, replies[row.id], OWN_PROMPTS["blink"])
        assert (request is not None) == (hit == LLM), replies[row.id]
        asked += hit == LLM
        assert found.hits[row.id] == (kit.hits[row.id] if hit == LLM else hit)
    assert 0 < asked < len(rows)


def test_mathvistas_llm_is_asked_for_what_its_code_does_not_read():
    (rows, replies), official = rows_of("mathvista"), data("mathvista")[OFFICIAL]
    for row, hit in zip(rows, official, strict=True):
        request = mathvista.request(row, replies[row.id], OWN_PROMPTS["mathvista"])
        assert (request is not None) == (hit == LLM), replies[row.id]


def test_blinks_mean_of_tasks():
    """The official code compares what an LLM wrote as a text; we read the letter in it."""
    kept, official = data("blink")["mapped"], data("blink")["mapped_official"]
    rows = [choice(key, options, gold, groups={"task": (task,)}) for key, task, options, gold, _ in kept]
    result = score(TASKS["blink"], rows, {row[0]: row[-1] for row in kept}, Choices(), generation="greedy")
    different = [row for row, hit in zip(kept, official, strict=True) if result.hits[row[0]] != hit]
    assert len(different) == DISAGREEMENTS["blink", OFFICIAL]
    assert all(row[-1] != f"({row[3]})" and row[3] in row[-1] for row in different)
    # With these as the official code takes them, every task and the mean of tasks are the official ones.
    replies = {row[0]: "(Z)" if row in different else row[-1] for row in kept}
    result = score(TASKS["blink"], rows, replies, Choices(), generation="greedy")
    totals = data("blink")["totals"]
    assert result.score == pytest.approx(totals["Total"]) != result.details["mean_of_rows"]
    assert len(result.groups["task"]) == 14
    for task, group in result.groups["task"].items():
        assert group.score == pytest.approx(totals[task])


class Kept:
    """A judge whose grades are there already."""

    title, facts = "MM-Vet (judge kept)", {"judge": "kept"}

    def __init__(self, grades: list[list[float]]) -> None:
        self.grades = grades

    def grade(self, items: Sequence[Any], *, run: int) -> list[Grade]:
        return [Grade(score=of[run], reason="") for of in self.grades]

    def beside(self, items: Sequence[Any]) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("name", "version"), [("mmvet", "v1"), ("mmvet_v2", "v2")])
def test_mm_vets_averages(name, version):
    kept, totals = data("mmvet")["rows"], data("mmvet")["totals"][version]
    rows = [
        Row(
            id=key,
            question="?",
            images={},
            gold="x",
            split="v1",
            groups={"capability": tuple(of), "combination": ("+".join(sorted(of)),)},
            facts={"version": 1},
        )
        for key, of, _ in kept
    ]
    choices = Choices(judge=Kept([grades for *_, grades in kept]), judge_runs=2)
    result = score(TASKS[name], rows, {row.id: "" for row in rows}, choices, generation="greedy")
    assert 100 * result.score == pytest.approx(totals["total"])
    assert 100 * result.details["std_over_runs"] == pytest.approx(totals["std"])
    for capability, group in result.groups["capability"].items():
        assert 100 * group.score == pytest.approx(totals[capability])
    for combination, group in result.groups["combination"].items():
        assert 100 * group.score == pytest.approx(totals[f"set {combination}"])
    assert len(totals) == 2 + sum(len(members) for members in result.groups.values())
