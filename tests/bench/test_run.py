"""A whole run on real subjects: files, resume, reports, the command, and timing in another process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.command import bench_command, named_sets
from bench.journal import read_lines
from bench.report import grid, markdown, print_reports, read_report
from bench.run import journal_of, read_answers, run_bench
from bench.subject import open_subject
from bench.timed import summarise
from bench.types import Answer, SubjectSpec
from genrecal.core.errors import BenchError, DataError
from tests.bench.chat_server import chat_server


class Counting:
    """A subject that counts what it is asked, and can be made to fail on the way."""

    def __init__(self, subject, fail_after=None):
        self.subject, self.fail_after, self.asked = subject, fail_after, []
        self.lanes = 1
        self.spec, self.facts, self.fingerprint, self.chunk = (
            subject.spec,
            subject.facts,
            subject.fingerprint,
            2,
        )

    def answer(self, queries):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += [query.id for query in queries]
        return self.subject.answer(queries)


@pytest.fixture(scope="module")
def student(student_folder):
    return open_subject(SubjectSpec(path=student_folder, name="student", greedy=True, max_new_tokens=6))


@pytest.fixture(scope="module")
def build(build_folder):
    return open_subject(SubjectSpec(path=build_folder, name="build", greedy=True, max_new_tokens=6))


@pytest.fixture(scope="module")
def reports(student, build, sets, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    return [
        run_bench(student, sets, output / "student", timed_queries=0, quiet=True),
        run_bench(build, sets, output / "build", timed_queries=2, quiet=True),
    ], output


def test_a_run_leaves_a_report_that_reads_back(reports):
    (student, build), output = reports
    assert read_report(output / "student") == student
    assert read_report(output / "build" / "bench.json") == build
    assert {name: result.score.n for name, result in build.results.items()} == {
        "mmb": 2,
        "mmmu": 2,
        "mmvet": 3,
    }
    content = json.loads((output / "build" / "bench.json").read_text())
    for result in content["results"].values():
        for label in ("data_sha256", "prompt_sha256", "generation", "versions", "interval"):
            assert result[label]
    assert content["results"]["mmvet"]["score"]["details"]["judge"] == {
        "judge": "offline rules",
        "version": 1,
    }
    assert len(read_answers(output / "build", "mmb")) == 4


def test_timing_happened_in_another_process(reports):
    (student, build), _ = reports
    assert student.perf is None
    perf = build.perf
    assert perf.queries == 2 and 0 < perf.first_token_s_p50 <= perf.first_token_s_p95 <= perf.total_s_p95
    # This process holds torch; the build's own does not.
    assert 10e6 < perf.peak_memory_bytes < 200e6
    assert perf.weights_bytes == build.facts.weights_bytes


def test_side_by_side(reports, capsys):
    both, output = reports
    shown = grid(both)
    assert [row[0] for row in shown.rows] == ["student", "build"]
    assert "MM-Vet questions, offline judge %" in shown.columns and "MM-Vet %" not in shown.columns
    assert shown.rows[0][1:3] == shown.rows[1][1:3]  # the build scores as its checkpoint does
    print_reports(both)
    assert "offline judge" in capsys.readouterr().out
    lines = markdown(both).splitlines()
    assert lines[0].count("|") == len(shown.columns) + 1 and lines[2].startswith("| student |")
    assert (output / "build" / "bench.md").read_text() == markdown(both[1:])


def test_other_questions_prompts_or_judges_are_not_put_side_by_side(reports):
    (student, build), _ = reports
    for change in ({"data_sha256": "0"}, {"prompt_sha256": "0"}):
        other = replace(build, results={"mmb": replace(build.results["mmb"], **change)})
        with pytest.raises(BenchError, match=r"answered different questions|asked in different words"):
            grid([student, other])


def test_a_killed_run_goes_on_where_it_stopped(student, sets, tmp_path, reports):
    killed = Counting(student, fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_bench(killed, sets, tmp_path, timed_queries=0, quiet=True)
    journal = journal_of(tmp_path, "mmb")
    with journal.open("a") as stream:
        stream.write('{"id": "cut sho')  # the crash also cut a line short
    resumed = Counting(student)
    report = run_bench(resumed, sets, tmp_path, timed_queries=0, quiet=True)
    assert not set(killed.asked) & set(resumed.asked)
    assert sum(len(line["answers"]) for line in read_lines(journal)[1:]) == 4
    whole = reports[0][0]
    assert {name: one.score for name, one in report.results.items()} == {
        name: one.score for name, one in whole.results.items()
    }
    again = Counting(student)
    run_bench(again, sets, tmp_path, timed_queries=0, quiet=True)
    assert again.asked == []


def test_answers_of_another_subject_or_set_are_not_mixed_in(student, build, sets, tmp_path):
    only = {"mmb": sets["mmb"]}
    run_bench(student, only, tmp_path, timed_queries=0, quiet=True)
    with pytest.raises(BenchError, match="other subject or settings"):
        run_bench(build, only, tmp_path, timed_queries=0, quiet=True)
    changed = tmp_path / "changed.tsv"
    changed.write_text(sets["mmb"].read_text().replace("Which colour", "What colour"))
    with pytest.raises(BenchError, match="other test set"):
        run_bench(student, {"mmb": changed}, tmp_path, timed_queries=0, quiet=True)


def test_a_bad_set_shows_before_the_first_answer(student, sets, tmp_path):
    subject = Counting(student)
    with pytest.raises(DataError):
        run_bench(subject, {**sets, "mmvet": tmp_path}, tmp_path / "out", quiet=True)
    for bad in ({}, {"mmbench": sets["mmb"]}):
        with pytest.raises(BenchError):
            run_bench(subject, bad, tmp_path / "out", quiet=True)
    assert subject.asked == []


def test_the_command(build_folder, sets, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GENRECAL_JUDGE_BASE_URL", raising=False)
    report = bench_command(build_folder, sets={"mmmu": sets["mmmu"]}, output=tmp_path / "out", greedy=True)
    assert report.name.endswith("/build") and report.results["mmmu"].score.n == 2
    assert "MMMU" in capsys.readouterr().out
    with pytest.raises(BenchError, match="judge options without a judge"):
        bench_command(build_folder, sets=sets, output=tmp_path / "out", judge_runs=5)


def test_another_rule_and_overlap_are_in_the_record(student, sets, tmp_path, capsys):
    found = {"mmb": {"samples": 3, "questions": 1, "by": {"image": 3}, "examples": [], "compared": 9}}
    asked = {}

    def find(subject, questions):
        asked.update({name: [one.name for one in read()] for name, read in questions.items()})
        return found

    only = {"mmb": sets["mmb"]}
    report = run_bench(student, only, tmp_path, timed_queries=0, compat="lmms", overlap=find, quiet=True)
    result = report.results["mmb"].score
    assert (result.compat, result.title, result.generation) == ("lmms", "MMB (lmms)", "greedy")
    assert read_report(tmp_path).results["mmb"].score.details["overlap"] == found["mmb"]
    assert asked == {"mmb": ["mmb, 1", "mmb, 2"]}  # not their rotations
    assert "mmb: 3 of 9 training samples overlap with 1 of its" in " ".join(capsys.readouterr().err.split())


def test_sets_by_name():
    given = {"mmb": Path("a.tsv"), "mmmu": None}
    assert named_sets(given, ["ai2d=x=y"]) == {"mmb": Path("a.tsv"), "ai2d": Path("x=y")}
    for wrong in (["ai2d"], ["ai2d="], ["mmb=b.tsv"]):
        with pytest.raises(BenchError):
            named_sets(given, wrong)


def test_answers_that_are_there_twice_are_refused(student, sets, tmp_path):
    only = {"mmb": sets["mmb"]}
    run_bench(student, only, tmp_path, timed_queries=0, quiet=True)
    journal = journal_of(tmp_path, "mmb")
    journal.write_bytes(journal.read_bytes() + journal.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(BenchError, match="is answered twice"):
        run_bench(student, only, tmp_path, timed_queries=0, quiet=True)


def test_too_many_ungraded_replies_fail_the_run_after_it_is_written(
    build_folder, sets, tmp_path, monkeypatch
):
    monkeypatch.setenv("GENRECAL_JUDGE_API_KEY", "k")
    only = {"mmvet": sets["mmvet"]}
    with chat_server() as server:
        options = {"judge_url": server.url, "greedy": True, "timed_queries": 0, "output": tmp_path / "out"}
        server.script = ["well"]
        with pytest.raises(BenchError, match=r"incomplete: mmvet \(6 replies unscored\)") as error:
            bench_command(build_folder, sets=only, judge_runs=2, **options)
        assert error.value.exit_code == 7
        assert read_report(tmp_path / "out").results["mmvet"].score.score is None
        assert "incomplete" in (tmp_path / "out" / "bench.md").read_text()
        server.script = ["0.5"]
        done = bench_command(build_folder, sets=only, judge_runs=2, **options)
        assert done.results["mmvet"].score.score == 0.5
    kept = bench_command(build_folder, sets=only, judge_runs=2, judge_replay=True, **options)
    assert kept.results == done.results


def test_a_journal_that_is_no_journal(tmp_path):
    (tmp_path / "j").write_text("nonsense\n")
    with pytest.raises(BenchError, match="line 1"):
        read_lines(tmp_path / "j")


def test_percentiles_by_hand():
    answers = [
        Answer(text="", tokens=5, prompt_tokens=1, first_token_s=1.0, total_s=3.0),
        Answer(text="", tokens=1, prompt_tokens=1, first_token_s=2.0, total_s=2.0),
    ]
    perf = summarise([answers], memory=1, gpu=None, weights=1)
    assert (perf.first_token_s_p50, perf.total_s_p50, perf.tokens_per_s_p50) == (1.5, 2.5, 2.0)
    assert summarise([answers[1:]], memory=1, gpu=None, weights=1).tokens_per_s_p50 is None
