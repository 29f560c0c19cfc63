"""`genrecal bench BUILD --baseline`: a build and its checkpoint through the gate, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import cli
from bench.run import read_answers
from genrecal.core.errors import BenchError, ConfigError, DataError, GenrecalError

runner = CliRunner()


@pytest.fixture
def bench(build_folder, student_folder, sets, tmp_path, monkeypatch):
    monkeypatch.delenv("GENRECAL_JUDGE_BASE_URL", raising=False)

    def run(*more, baseline=student_folder, output="build"):
        call = ["bench", build_folder, "--mmb", sets["mmb"], "--greedy", "--timed", 0]
        call += ["--output", tmp_path / output, *(["--baseline", baseline] if baseline else []), *more]
        return runner.invoke(cli.app, [str(one) for one in call])

    return run


def test_a_checkpoint_is_benched_first_and_two_questions_cannot_tell(bench, student_folder, tmp_path):
    found = bench("--max-drop", "1.0")
    assert found.exit_code == 2, found.output
    assert "gate: cannot tell (exit code 2)" in found.output and "McNemar p = 1" in found.output
    assert json.loads((tmp_path / "build" / "gate.json").read_text())["verdict"] == "cannot tell"
    saved = student_folder.parent / f"{student_folder.name}-bench"
    assert len(read_answers(saved, "mmb")) == 4
    # The second time the baseline's results are read; without a limit nothing is judged.
    before = (saved / "bench.json").stat().st_mtime_ns
    again = bench()
    assert again.exit_code == 0 and "gate" not in again.output
    assert (saved / "bench.json").stat().st_mtime_ns == before
    # A limit that any build keeps.
    assert bench("--max-drop", "100", baseline=saved).exit_code == 0


def test_what_cannot_be_compared_fails_before_an_answer_and_not_with_a_verdict(bench, sets, tmp_path):
    for more, baseline, said in (
        (["--max-drop", "x"], tmp_path, "number of points"),
        (["--max-drop", "1"], None, "without a baseline"),
        ([], tmp_path / "nothing", "no such folder"),
    ):
        found = bench(*more, baseline=baseline, output="early")
        assert found.exit_code not in (0, 1, 2) and said in found.output, found.output
        assert not (tmp_path / "early").exists()


def test_a_baseline_of_other_sets_or_settings_is_refused(bench, build_folder, sets, tmp_path):
    alone = bench("--limit", 1, baseline=None, output="part")
    assert alone.exit_code == 0
    found = bench("--max-drop", "1", baseline=tmp_path / "part")
    assert found.exit_code == BenchError.exit_code and "answered different questions" in found.output
    found = bench("--mmmu", sets["mmmu"], baseline=tmp_path / "part", output="other")
    assert found.exit_code == BenchError.exit_code and "no score in 'mmmu'" in found.output
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GenrecalError("a"), BenchError.exit_code),
        (ConfigError("b"), BenchError.exit_code),
        (DataError("c"), DataError.exit_code),
        (OSError(28, "No space left on device", "disk"), BenchError.exit_code),
        (ModuleNotFoundError("No module named 'openai'", name="openai"), BenchError.exit_code),
        (ModuleNotFoundError("No module named 'nothing'", name="nothing"), cli.EX_SOFTWARE),
        (OSError("without a number"), cli.EX_SOFTWARE),
        (RuntimeError("a defect"), cli.EX_SOFTWARE),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_never_leaves_with_a_verdicts_code(bench, tmp_path, monkeypatch, error, code):
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "gate.json").write_text("{}")

    def fail(*_args, **_more):
        raise error

    monkeypatch.setattr("bench.against.bench_command", fail)
    assert bench("--max-drop", "1").exit_code == code
    assert not (tmp_path / "build" / "gate.json").exists()


def test_a_wrong_command_line_of_bench_is_no_verdict_and_elsewhere_it_is_two(bench):
    for wrong in (["--no-such-option"], ["--limit", "none"], ["--limit", "0"]):
        found = bench("--max-drop", "1", *wrong)
        assert found.exit_code == cli.EX_USAGE and wrong[0] in found.output
    assert runner.invoke(cli.app, ["bench"]).exit_code == cli.EX_USAGE
    assert runner.invoke(cli.app, ["score", "--no-such-option"]).exit_code == 2


def test_the_process_itself_leaves_with_these_codes(tmp_path):
    for more, code in ((["--no-such-option"], cli.EX_USAGE), (["--max-drop", "x"], BenchError.exit_code)):
        found = subprocess.run(
            [sys.executable, "-m", "cli", "bench", str(tmp_path), *more], capture_output=True
        )
        assert found.returncode == code, found.stderr
