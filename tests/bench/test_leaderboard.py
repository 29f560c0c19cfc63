"""The paper's rows as data, and runs beside them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.leaderboard import COLUMNS, leaderboard, leaderboard_command, markdown, pair_of, paper_entries
from bench.report import Report, Result
from bench.run import write_report
from bench.types import Facts, Score
from genrecal.core.errors import BenchError

PAIR = {"student": "Qwen2-VL-2B-Instruct", "teacher": "InternVL2_5-78B", "method": "genrecal"}


def score(benchmark, value, **more):
    return Score(
        **{
            "title": benchmark.upper(),
            "benchmark": benchmark,
            "version": "v1.0",
            "split": "dev",
            "language": "en",
            "compat": "official",
            "prompt_sha256": "0",
            "generation": "model",
            "judge": None,
            "score": value,
            "n": 4,
            "groups": {},
            "hits": {"1": 1.0},
            **more,
        }
    )


def report(*scores, path=None):
    results = {
        one.benchmark: Result(
            score=one,
            interval=None,
            source="s",
            data_sha256="0",
            prompt_sha256="0",
            generation={},
            versions={},
            answer_tokens=1.0,
        )
        for one in scores
    }
    facts = Facts(kind="checkpoint", weights_bytes=1, precision="-", device="cpu", generation={})
    return Report(
        name="runs|student", spec={"path": path}, facts=facts, fingerprint="0", results=results, perf=None
    )


def test_every_row_of_the_paper_is_there():
    counts = {}
    for entry in paper_entries():
        counts[entry.source] = counts.get(entry.source, 0) + 1
        assert entry.scores.keys() <= COLUMNS.keys() and all(10 < one < 100 for one in entry.scores.values())
    assert counts == {"Table 1": 30, "Table 2": 13, "Table 3": 12, "Table 4": 12, "Appendix G": 10}
    assert sum(len(entry.scores) for entry in paper_entries()) == 582


@pytest.mark.parametrize(
    ("source", "name", "figures"),
    [
        ("Table 1", "VILA1.5-8B", {"AI2D": 58.8, "MMB-CN": 69.9, "RWQA": 43.4}),
        ("Table 1", "Qwen2-VL-2B-GenRecal (InternVL2.5-78B)", {"AI2D": 89.1, "MMMU-Pro": 37.5, "RWQA": 72.8}),
        ("Table 1", "LLaVA-OneVision-0.5B", {"BLINK": 52.1, "MM-Vet": 32.2}),
        ("Table 2", "GPT-4o (0513)", {"MMB": 83.4, "MMStar": 64.7, "RWQA": 75.4}),
        ("Table 3", "InternVL2.5-1B, GenRecal without Reg", {"MMB": 72.6, "MMMU": 41.1}),
        ("Table 4", "Qwen2-VL-2B, LLaVA-KD", {"MMB": 78.3, "MathVista": 46.9}),
        ("Appendix G", "Qwen2-VL-7B, LLaVA-KD (answers only) (InternVL2.5-78B)", {"MMB": 85.7, "MMMU": 59.5}),
    ],
)
def test_figures_of_the_paper(source, name, figures):
    (entry,) = (one for one in paper_entries() if (one.source, one.name) == (source, name))
    assert {column: entry.scores[column] for column in figures} == figures


def test_figures_that_the_paper_gives_twice_agree():
    seen = {}
    for entry in paper_entries():
        if entry.method == "GenRecal":
            for column, value in entry.scores.items():
                seen.setdefault((entry.student, entry.teacher, column), set()).add(value)
    assert seen and all(len(values) == 1 for values in seen.values())


def test_the_same_pair_is_marked():
    entries = leaderboard([report(score("mmb", 0.5))], [PAIR])
    marked = [(entry.source, entry.name) for entry in entries if entry.same_pair]
    assert marked == [("Table 1", "Qwen2-VL-2B-GenRecal (InternVL2.5-78B)")]
    nvlm = {"student": "InternVL2_5-8B", "teacher": "NVLM-D-72B", "method": "genrecal"}
    marked = [entry.name for entry in leaderboard([report()], [nvlm]) if entry.same_pair]
    assert marked == ["InternVL2.5-8B-GenRecal (NVLM-72B)"]
    assert not any(entry.same_pair for entry in leaderboard([report()], [{}]))


def test_scores_of_another_kind_have_no_cell():
    run = report(
        score("mmb", 0.512),
        score("mmb_v11", 0.4),
        score("mmvet", 0.9, judge={"judge": "offline rules"}),
        score("mmmu", 0.8, compat="lmms"),
        score("mmvet_v2", None, judge={"judge": "gpt-4-0613"}),
        score("textvqa", 0.7),
    )
    entry, *_ = leaderboard([run], [PAIR])
    assert entry.scores == {"MMB": pytest.approx(51.2)}
    text = markdown([entry])
    assert "| run | runs\\|student | 51.2 |" in text
    for part in ("by the rule of lmms", "graded by rules", "incomplete", "another version", "does not have"):
        assert part in text
    judged = report(score("mmvet", 0.5, judge={"judge": "gpt-4-0613"}))
    assert "judge gpt-4-0613" in markdown(leaderboard([judged], [PAIR]))


def test_a_part_of_a_set_has_no_cell_beside_the_papers_rows():
    cut = report(score("mmb", 0.5, details={"part": {"questions": 100, "of": 1164}}), score("mmmu", 0.4))
    entry, *_ = leaderboard([cut], [PAIR])
    assert entry.scores == {"MMMU": pytest.approx(40)}
    assert "MMB: 50.0, over 100 of 1164 questions (--limit)" in markdown([entry])
    alone = report(score("mathvista", 0.5, details={"extraction": "code alone"}))
    assert "read by code alone" in markdown(leaderboard([alone], [PAIR]))


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "student").mkdir(parents=True)
    (run / "config.yaml").write_text(
        "teacher: models/InternVL2_5-78B\nstudent: {path: models/Qwen2-VL-2B-Instruct}\nmethod: genrecal\n"
    )
    one = report(score("mmb", 0.5), path=str(run / "student"))
    assert pair_of(one) == PAIR and pair_of(replace(one, spec={"path": None})) == {}
    write_report(one, run / "student-bench", quiet=True)
    leaderboard_command([run / "student-bench"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 77 + 3
    assert sum(" * |" in line for line in lines) == 1
    leaderboard_command([run / "student-bench"], as_json=True, output=tmp_path / "board.json")
    entries = json.loads((tmp_path / "board.json").read_text())
    assert (
        len(entries) == 78
        and entries[0]["teacher"] == "InternVL2_5-78B"
        and entries[0]["scores"] == {"MMB": 50}
    )
    for wrong in ([], [tmp_path]):
        with pytest.raises(BenchError):
            leaderboard_command(wrong)
