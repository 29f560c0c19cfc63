"""Long runs: killed at any moment, resumed without asking twice; batches by length; several lanes."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.answering import answer_all, read_answers
from bench.batches import batches
from bench.journal import Journal
from bench.rescore import score_command
from bench.run import journal_of, run_bench
from bench.subject import open_subject, spec_of
from bench.tasks import TASKS
from bench.types import Answer, Facts, SubjectSpec
from genrecal.core.errors import BenchError
from genrecal.core.files import write_json
from tests.bench.tiny_sets import mmb_row, write_mmb

ROOT = Path(__file__).parents[2]
HEADER = {"subject": "s", "prompt": "p", "data": "d"}


class Echo:
    """Answers with the question's id; notes what it was asked, and in which batches."""

    facts = Facts(kind="answers", weights_bytes=None, precision="", device="cpu", generation={})
    fingerprint = "s"

    def __init__(self, *, chunk=1, lanes=1, fail_at=None):
        self.spec = SubjectSpec(name="echo")
        self.chunk, self.lanes, self.fail_at = chunk, lanes, fail_at
        self.batches, self.at_once, self.most = [], 0, 0
        self._changed = threading.Condition()

    def answer(self, queries):
        with self._changed:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.batches.append([query.id for query in queries])
            self._changed.notify_all()
            # Until every lane has been busy at once, however slowly threads come to their turn.
            self._changed.wait_for(lambda: self.most >= self.lanes, timeout=5)
            self.at_once -= 1
        if self.fail_at in [query.id for query in queries]:
            raise BenchError("it broke", where="here")
        return [
            Answer(text=query.id, tokens=1, prompt_tokens=1, first_token_s=None, total_s=0.0)
            for query in queries
        ]

    def forget(self):
        pass

    @property
    def asked(self):
        return list(itertools.chain(*self.batches))


@pytest.fixture(scope="module")
def tsv(tmp_path_factory):
    questions = [
        mmb_row(number, ["red", "green"], "A", question="Which colour? " * (number % 5 + 1))
        for number in range(1, 13)
    ]
    return write_mmb(tmp_path_factory.mktemp("long") / "mmb.tsv", questions)


@pytest.fixture(scope="module")
def rows(tsv):
    return TASKS["mmb"].load(tsv)


def answered(subject, rows, path):
    return answer_all(subject, TASKS["mmb"], rows, path, header=HEADER, quiet=True)


def test_a_journal_cut_anywhere_is_completed_without_asking_twice(rows, tmp_path):
    whole = answered(Echo(chunk=4), rows, tmp_path / "whole")
    assert list(whole) == [row.id for row in rows] and all(key == one.text for key, one in whole.items())
    data = (tmp_path / "whole").read_bytes()
    for cut in range(0, len(data) + 1, 97):
        path = tmp_path / f"{cut}"
        path.write_bytes(data[:cut])
        kept = set(read_answers(path)[1]) if b"\n" in data[:cut] else set()
        subject = Echo(chunk=4)
        assert answered(subject, rows, path) == whole
        assert sorted(subject.asked) == sorted({row.id for row in rows} - kept)
        # The batches are those of the whole run, so that sampling and padding are, too.
        cuts = [[row.id for row in batch] for batch in batches(rows, 4)]
        assert all(batch in cuts for batch in subject.batches)
        assert path.read_bytes().startswith(data[: data[:cut].rfind(b"\n") + 1])


def test_batches_are_of_like_length_longest_first_and_depend_on_rows_alone(rows):
    cut = batches(rows, 5)
    lengths = [[len(row.question) for row in batch] for batch in cut]
    assert [len(batch) for batch in cut] == [5, 5, 5, 5, 4]
    assert list(itertools.chain(*lengths)) == sorted(itertools.chain(*lengths), reverse=True)
    assert batches(rows[::-1], 5) == cut
    assert batches(rows, 1) == [[row] for row in rows]
    wide = [*rows]
    wide[7] = replace(rows[7], images={1: _png(300, 200)})
    assert batches(wide, 5)[0][0].id == rows[7].id


def _png(width, height):
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, format="PNG")
    return stream.getvalue()


def test_lanes_work_side_by_side_and_a_failure_loses_nothing(rows, tmp_path):
    subject = Echo(lanes=3)
    whole = answered(subject, rows, tmp_path / "whole")
    assert list(whole) == [row.id for row in rows] and subject.most == 3
    broken = Echo(lanes=3, fail_at=rows[9].id)
    with pytest.raises(BenchError, match="it broke"):
        answered(broken, rows, tmp_path / "broken")
    kept = set(read_answers(tmp_path / "broken")[1])
    again = Echo(lanes=3)
    assert answered(again, rows, tmp_path / "broken") == whole
    assert kept and not kept & set(again.asked)


def test_two_runs_do_not_write_one_journal(rows, tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(BenchError, match="another run is writing it"):
        answered(Echo(), rows, tmp_path / "j")


def test_an_answer_that_stands_there_twice_is_refused(rows, tmp_path):
    answered(Echo(), rows, tmp_path / "j")
    lines = (tmp_path / "j").read_text().splitlines()
    (tmp_path / "j").write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(BenchError, match="answered twice"):
        answered(Echo(), rows, tmp_path / "j")


def test_kill_9_at_several_points(build_folder, tsv, tmp_path):
    command = [sys.executable, "-m", "cli", "bench", str(build_folder), "--mmb", str(tsv), "--timed", "0"]
    journal = journal_of(tmp_path / "out", "mmb")
    for lines in (1, 4, 11):
        process = subprocess.Popen([*command, "--output", str(tmp_path / "out"), "--greedy"], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not journal.is_file() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = journal.read_bytes()
        assert before.count(b"\n") < 25, "it ended before it was killed"
    subject = open_subject(spec_of(build_folder, greedy=True))
    resumed = run_bench(subject, {"mmb": tsv}, tmp_path / "out", timed_queries=0, quiet=True)
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    whole = run_bench(subject, {"mmb": tsv}, tmp_path / "whole", timed_queries=0, quiet=True)
    assert resumed.results["mmb"].score == whole.results["mmb"].score
    one, other = (read_answers(journal_of(tmp_path / name, "mmb"))[1] for name in ("out", "whole"))
    assert {key: answer.text for key, answer in one.items()} == {
        key: answer.text for key, answer in other.items()
    }


def test_saved_answers_are_scored_without_the_model(rows, tsv, tmp_path):
    subject = Echo()
    report = run_bench(subject, {"mmb": tsv}, tmp_path / "out", timed_queries=0, quiet=True)
    (tmp_path / "out" / "bench.json").unlink()
    for sets in ({}, {"mmb": tsv}):
        again = score_command(tmp_path / "out", sets=sets, quiet=True)
        assert again == report
    kit = score_command(tmp_path / "out", sets={}, compat="lmms", output=tmp_path / "kit", quiet=True)
    assert kit.results["mmb"].score.compat == "lmms" and kit.fingerprint == report.fingerprint
    changed = tmp_path / "changed.tsv"
    changed.write_text(tsv.read_text().replace("green", "blue"))
    with pytest.raises(BenchError, match="to other questions"):
        score_command(tmp_path / "out", sets={"mmb": changed}, quiet=True)
    with pytest.raises(BenchError, match="holds no answers"):
        score_command(tmp_path, sets={}, quiet=True)


def test_replies_in_a_file_are_scored(rows, tsv, tmp_path):
    write_json(tmp_path / "replies.json", {row.id: row.gold for row in rows})
    report = score_command(tmp_path / "replies.json", sets={"mmb": tsv}, quiet=True)
    assert report.results["mmb"].score.score == 1.0 and report.facts.kind == "answers"
    assert json.loads((tmp_path / "replies-bench" / "bench.json").read_text())["name"] == "replies"
    write_json(tmp_path / "short.json", {rows[0].id: "A"})
    for name, sets in (("short.json", {"mmb": tsv}), ("replies.json", {})):
        with pytest.raises(BenchError):
            score_command(tmp_path / name, sets=sets, quiet=True)
