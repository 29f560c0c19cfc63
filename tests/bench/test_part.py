"""A part of a set is spread over it, keeps CircularEval groups whole and is the same each time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.part import part_of, part_text
from bench.rescore import score_command
from bench.run import run_bench
from bench.subject import open_subject
from bench.types import SubjectSpec


def test_evenly_spaced():
    questions = [SimpleNamespace(id=f"q{number}", question_id=f"q{number}") for number in range(10)]
    assert [one.id for one in part_of(questions, 4)] == ["q0", "q2", "q5", "q7"]
    assert part_of(questions, None) is questions
    assert part_of(questions, 99) == questions
    assert len(part_of(questions, 1)) == 1


def test_a_question_with_its_rotations_is_one():
    rows = [
        SimpleNamespace(id=turn * 10**6 + question, question_id=question)
        for turn in range(3)
        for question in range(4)
    ]
    kept = part_of(rows, 2)
    assert [row.id for row in kept] == [0, 2, 1000000, 1000002, 2000000, 2000002]


@pytest.mark.parametrize(("limit", "counts"), [(1, (1, 1, 1)), (2, (2, 2, 2))])
def test_a_limited_run_is_scored_over_its_part(student_folder, sets, tmp_path, limit, counts):
    spec = SubjectSpec(path=student_folder, name="student", greedy=True, max_new_tokens=6)
    report = run_bench(open_subject(spec), sets, tmp_path, timed_queries=0, limit=limit, quiet=True)
    assert tuple(report.results[name].score.n for name in ("mmb", "mmmu", "mmvet")) == counts
    assert report.perf is None
    cut = {name: part_text(result.score.details) for name, result in report.results.items()}
    of = {"mmb": 2, "mmmu": 2, "mmvet": 3}
    assert cut == {
        name: f"{limit} of {whole} questions (--limit)" if limit < whole else None
        for name, whole in of.items()
    }
    assert ("mmvet" in cut) and all(
        text in (tmp_path / "bench.md").read_text() for text in cut.values() if text
    )
    # What is saved is scored again as the part that it is.
    again = score_command(tmp_path, sets={}, quiet=True)
    assert {name: part_text(result.score.details) for name, result in again.results.items()} == cut
