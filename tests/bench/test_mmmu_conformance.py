"""The official results on real replies of LLaVA-1.5-13B, to the last row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.rules.mmmu_domains import DOMAIN_OF
from bench.rules.mmmu_parse import choice_is_right, open_is_right, parse_choice, parse_open
from bench.scoring import score
from bench.sets import mmmu
from bench.task import Choices, Row
from bench.tasks import TASKS
from bench.types import Score

DATA = Path(__file__).parent / "data" / "mmmu"


def read(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row for of in read("llava1.5_13b_raw_outputs_by_subject.json").values() for row in of]


@pytest.fixture(scope="module")
def questions(rows: list[dict[str, Any]]) -> list[Row]:
    return [
        Row(
            id=row["id"],
            question="",
            split="validation",
            facts={"subject": mmmu.subject_of(row["id"], "here")[1]},
            groups=mmmu.groups_of(mmmu.subject_of(row["id"], "here")[1], row["question_type"]),
            options=row["index2ans"] if row["question_type"] == "multiple-choice" else {},
            gold=row["answer"] if isinstance(row["answer"], str) else tuple(row["answer"]),
            images={},
        )
        for row in rows
    ]


def scored(questions: list[Row], replies: dict[str, str], official_random: bool) -> Score:
    choices = Choices(official_random=official_random)
    return score(TASKS["mmmu"], questions, replies, choices, generation="greedy")


@pytest.mark.parametrize("official_random", [True, False])
def test_every_row_is_judged_as_the_official_script_judges_it(rows, questions, official_random):
    expected = read("expected_llava1.5_13b_parse_and_eval.json")
    result = scored(questions, {row["id"]: row["response"] for row in rows}, official_random)
    fell = []
    for of_subject in expected["per_sample"].values():
        for name, sample in of_subject.items():
            right = sample["judge"] == "Correct" and (official_random or not sample.get("random_fallback"))
            assert result.hits[name] == float(right), name
            if sample.get("random_fallback"):
                fell.append(name)
    assert sorted(result.details["random_row_ids"]) == sorted(fell)
    assert result.details["random_rows"] == expected["random_fallback_total"] == 2
    assert result.details["random_rows_right_by_luck"] == expected["random_fallback_correct_by_luck"] == 1
    key = "overall_acc" if official_random else "acc_counting_random_as_wrong"
    assert result.score == pytest.approx(expected[key], abs=1e-12)
    if official_random:
        for subject, official in expected["per_subject"].items():
            group = result.groups["subject"][subject]
            assert (group.n, group.score) == (official["num_example"], pytest.approx(official["acc"]))


def test_the_order_of_the_rows_does_not_move_the_draws(rows, questions):
    replies = {row["id"]: row["response"] for row in rows}
    turned = sorted(questions, key=lambda question: question.facts["subject"], reverse=True)
    one, other = (scored(of, replies, True) for of in (questions, turned))
    assert one.hits == other.hits


def test_parsed_letters_and_values_agree(rows):
    expected = read("expected_llava1.5_13b_parse_and_eval.json")["per_sample"]
    for row in rows:
        sample = expected["_".join(row["id"].split("_")[1:-1])][row["id"]]
        if row["question_type"] != "multiple-choice":
            assert set(map(str, parse_open(row["response"]))) == set(map(str, sample["parsed_pred"]))
        elif not sample.get("random_fallback"):
            assert parse_choice(row["response"], row["index2ans"]) == sample["parsed_pred"]


@pytest.mark.parametrize("name", ["llava1.5_13b_val", "llava1.5_13b_total_val_output"])
def test_eval_only_by_subject_domain_and_overall(name):
    predictions, expected = read(f"{name}.json"), read(f"expected_evalonly_{name}.json")
    members: dict[str, list[bool]] = {}
    for question, answer in read("answer_dict_val.json").items():
        gold, predicted = answer["ground_truth"], predictions[question]
        if answer["question_type"] == "multiple-choice":
            right = choice_is_right(predicted, gold)
        else:
            right = open_is_right(parse_open(predicted), gold)
        subject = "_".join(question.split("_")[1:-1])
        for group in (subject, f"Overall-{DOMAIN_OF[subject]}", "Overall"):
            members.setdefault(group, []).append(right)
    measured = {group: {"num": len(of), "acc": round(sum(of) / len(of), 3)} for group, of in members.items()}
    assert measured == expected
