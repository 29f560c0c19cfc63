"""The gate at each side of its limits, by simulation at the limit itself, and what it refuses to compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bench.stats
from bench.differences import decoding, points
from bench.gate import (
    CANNOT_TELL,
    NO_WORSE,
    WORSE,
    Limits,
    gate_json,
    gate_lines,
    judge_drop,
    read_limits,
)
from bench.report import Report, Result
from bench.types import Facts, Score
from genrecal.core.errors import BenchError

POINT = Limits(every=0.01, of_sets={})


def result(hits, **changes) -> Result:
    score = Score(
        title=changes.pop("title", "MMB"),
        benchmark="mmb",
        version=changes.pop("version", "1.0"),
        split=changes.pop("split", "dev"),
        language="en",
        compat=changes.pop("compat", "official"),
        prompt_sha256=changes.pop("prompt", "1" * 64),
        generation=changes.pop("choice", "greedy"),
        judge=changes.pop("judge", None),
        score=changes.pop("score", float(np.mean(list(hits.values())))),
        n=len(hits),
        groups={},
        hits=hits,
    )
    facts = {"generation": {"max_new_tokens": 16}, "data_sha256": "0" * 64, **changes}
    return Result(
        score=score,
        interval=None,
        source="mmb.tsv",
        prompt_sha256=score.prompt_sha256,
        versions={},
        answer_tokens=1.0,
        **facts,
    )


def report(name, **results) -> Report:
    facts = Facts(kind="build", weights_bytes=1, precision="fp32", device="cpu", generation={})
    return Report(name=name, spec={}, facts=facts, fingerprint=name, results=results, perf=None)


def pair(n, *, gains=0, losses=0, right=0.6, prefix=""):
    """Hits of a build and of its baseline that differ in that many questions."""
    half = [1.0] * int(n * right) + [0.0] * (n - int(n * right))
    build = list(half)
    for place in range(losses):
        build[place] = 0.0
    for place in range(gains):
        build[n - 1 - place] = 1.0
    names = [f"{prefix}{number}" for number in range(n)]
    return dict(zip(names, build, strict=True)), dict(zip(names, half, strict=True))


def verdict(n, limits=POINT, **changes):
    build, baseline = pair(n, **changes)
    return judge_drop(report("build", mmb=result(build)), report("baseline", mmb=result(baseline)), limits)


def test_a_build_that_agrees_on_many_questions_is_no_worse():
    gate = verdict(2000, gains=8, losses=8)
    assert (gate.verdict, gate.exit_code) == (NO_WORSE, 0)
    assert gate.together is None and gate.parts["mmb"].interval.low > -0.01


def test_a_build_that_loses_many_is_worse():
    gate = verdict(2000, gains=10, losses=110)
    assert (gate.verdict, gate.exit_code) == (WORSE, 1)
    assert gate.parts["mmb"].high_for_worse < -0.01


@pytest.mark.parametrize(("n", "gains", "losses"), [(2000, 60, 80), (40, 0, 0), (1, 0, 0), (200, 0, 4)])
def test_where_the_limit_lies_inside_the_interval_it_cannot_tell(n, gains, losses):
    gate = verdict(n, gains=gains, losses=losses)
    assert (gate.verdict, gate.exit_code) == (CANNOT_TELL, 2)
    part = gate.parts["mmb"]
    assert part.interval.low < -0.01 <= part.high_for_worse


def test_equal_answers_pass_from_the_size_on_that_an_exact_bound_asks_for():
    # A build that fails where its baseline does not in 1% of questions shows none of it in 368 (2.5%).
    assert verdict(300).verdict == CANNOT_TELL
    assert verdict(500).verdict == NO_WORSE


def test_one_image_behind_all_questions_tells_nothing():
    build, baseline = pair(2000, gains=8, losses=8)
    one = dict.fromkeys(build, "the image")
    gate = judge_drop(
        report("build", mmb=result(build, clusters=one)),
        report("baseline", mmb=result(baseline, clusters=one)),
        POINT,
    )
    assert gate.verdict == CANNOT_TELL


def test_the_limit_itself_is_allowed_and_zero_is_a_limit():
    gate = verdict(2000, gains=8, losses=8)
    edge = -gate.parts["mmb"].interval.low
    assert verdict(2000, Limits(every=edge, of_sets={}), gains=8, losses=8).verdict == NO_WORSE
    assert verdict(2000, Limits(every=edge - 1e-6, of_sets={}), gains=8, losses=8).verdict == CANNOT_TELL
    assert verdict(500, Limits(every=0.0, of_sets={}), gains=60).verdict == NO_WORSE


def several(*, mmb, mmmu, limits=POINT):
    build, baseline = {}, {}
    for name, changes in (("mmb", mmb), ("mmmu", mmmu)):
        one, other = pair(2000, prefix=name, **changes)
        build[name], baseline[name] = result(one, title=name), result(other, title=name)
    return judge_drop(report("build", **build), report("baseline", **baseline), limits)


def test_of_several_benchmarks_each_and_their_mean_must_pass():
    fine, lost, wide = {"gains": 8, "losses": 8}, {"gains": 10, "losses": 110}, {"gains": 60, "losses": 80}
    good = several(mmb=fine, mmmu=fine)
    assert good.exit_code == 0 and good.together is not None and good.together.verdict == NO_WORSE
    assert good.together.mean == pytest.approx(0.0)
    # Halved in the mean, the loss is still shown in its own benchmark.
    assert several(mmb=fine, mmmu=lost).exit_code == 1
    unclear = several(mmb=fine, mmmu=wide)
    assert unclear.exit_code == 2
    assert {name: part.verdict for name, part in unclear.parts.items()} == {
        "mmb": NO_WORSE,
        "mmmu": CANNOT_TELL,
    }
    # A set that is too small for the limit may have one of its own.
    assert several(mmb=fine, mmmu=wide, limits=Limits(every=0.01, of_sets={"mmmu": 0.03})).exit_code == 0


def test_to_be_worse_many_parts_must_say_so_more_clearly_than_one():
    one = verdict(2000, gains=10, losses=48)
    many = several(mmb={"gains": 10, "losses": 48}, mmmu={"gains": 8, "losses": 8})
    assert one.parts["mmb"].high_for_worse == one.parts["mmb"].interval.high
    assert many.parts["mmb"].high_for_worse > many.parts["mmb"].interval.high
    assert (one.exit_code, many.exit_code) == (1, 2)


def test_at_the_limit_builds_pass_and_fail_by_mistake_as_seldom_as_claimed(monkeypatch):
    """A true drop of exactly what is allowed: to pass is a mistake of 2.5%, and so is to fail."""
    monkeypatch.setattr(bench.stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(11)
    n, gains, losses = 800, 0.02, 0.05
    found = []
    for seed in range(500):
        changed = rng.choice([1, -1, 0], n, p=[gains, losses, 1 - gains - losses])
        build = {str(number): float(value >= 0) for number, value in enumerate(changed)}
        baseline = {str(number): float(value <= 0) for number, value in enumerate(changed)}
        gate = judge_drop(
            report("build", mmb=result(build)),
            report("baseline", mmb=result(baseline)),
            Limits(every=losses - gains, of_sets={}),
            seed=seed,
        )
        found.append(gate.exit_code)
    # Five hundred at 2.5%: up to 20 in 98 of 100 cases.
    assert found.count(0) <= 20 and found.count(1) <= 20 and found.count(2) >= 460


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "test"}, "splits.*dev / test"),
        ({"version": "1.1"}, "versions"),
        ({"prompt": "2" * 64}, "other words|different words"),
        ({"choice": "model"}, "different settings"),
        ({"generation": {"max_new_tokens": 64}}, "max_new_tokens 16 / 64"),
        ({"judge": {"judge": "another"}}, "judges"),
        ({"compat": "lmms"}, "rules"),
        ({"data_sha256": "9" * 64}, "same ids"),
        ({"score": None}, "incomplete"),
    ],
)
def test_scores_that_differ_in_a_choice_are_refused(change, said):
    build, baseline = pair(100)
    with pytest.raises(BenchError, match=said):
        judge_drop(
            report("build", mmb=result(build)), report("baseline", mmb=result(baseline, **change)), POINT
        )


def test_other_ids_are_named_and_a_missing_benchmark_too():
    build, baseline = pair(100)
    fewer = {name: hit for name, hit in baseline.items() if name != "7"}
    one = report("build", mmb=result(build))
    with pytest.raises(BenchError, match="'7' the first of 1"):
        judge_drop(one, report("baseline", mmb=result(fewer, data_sha256="9" * 64)), POINT)
    with pytest.raises(BenchError, match="no score in 'mmb'"):
        judge_drop(one, report("baseline"), POINT)
    with pytest.raises(BenchError, match="has no scores"):
        judge_drop(report("build"), one, POINT)
    with pytest.raises(BenchError, match="'mmvet', which the build was not asked"):
        judge_drop(one, one, Limits(every=0.01, of_sets={"mmvet": 0.03}))


def test_a_question_without_a_grade_is_left_out_of_both():
    build, baseline = pair(1000)
    fewer = {name: hit for name, hit in baseline.items() if name != "7"}
    gate = judge_drop(report("build", mmb=result(build)), report("baseline", mmb=result(fewer)), POINT)
    assert gate.exit_code == 0


def test_partial_credit_passes_the_gate_by_its_interval():
    rng = np.random.default_rng(0)
    names = [str(number) for number in range(2000)]
    baseline = dict(zip(names, rng.integers(0, 11, 2000) / 10, strict=True))
    build = {name: min(1.0, hit + 0.1 * (int(name) % 20 == 0)) for name, hit in baseline.items()}
    gate = judge_drop(report("build", mmb=result(build)), report("baseline", mmb=result(baseline)), POINT)
    assert gate.verdict == NO_WORSE


def test_settings_that_draw_alike_are_alike():
    model = {"do_sample": False, "temperature": 0.1, "eos_token_id": 2, "max_new_tokens": 8}
    build = {"max_new_tokens": 8, "temperature": None, "num_beams": 1, "repetition_penalty": 1.0}
    assert decoding(model) == decoding(build) == {"max_new_tokens": 8}
    assert decoding({"do_sample": True, "top_k": 50, "top_p": 0.9}) == {"do_sample": True, "top_p": 0.9}


def test_limits_are_points():
    assert read_limits([]) is None
    assert read_limits(["1.0", "mmvet=3"]) == Limits(every=0.01, of_sets={"mmvet": 0.03})
    for bad in (["-1"], ["nan"], ["x"], ["101"], ["mmb="], ["mmb=2"]):
        with pytest.raises(BenchError):
            read_limits(bad)


def test_lines_and_json_say_the_same():
    gate = verdict(2000, gains=60, losses=80)
    lines = gate_lines(gate)
    assert lines[-1] == "gate: cannot tell (exit code 2)"
    assert "MMB: -1.0 [" in lines[1] and "smallest difference" in lines[1]
    content = gate_json(gate)
    assert content["exit_code"] == 2 and content["parts"]["mmb"]["verdict"] == CANNOT_TELL
    assert points(-0.0001) == "0.0" and points(0.014) == "+1.4"


def test_gates_do_not_depend_on_the_order_of_results():
    one, other = pair(2000, gains=8, losses=8)
    results = {"mmb": result(one), "mmmu": result(one, title="MMMU")}
    against = {"mmb": result(other), "mmmu": result(other, title="MMMU")}
    forwards = judge_drop(report("build", **results), report("baseline", **against), POINT)
    backwards = judge_drop(
        report("build", **dict(reversed(results.items()))), report("baseline", **against), POINT
    )
    assert forwards.parts["mmb"] == backwards.parts["mmb"] and forwards.together == backwards.together
    assert replace(forwards, parts={}) == replace(backwards, parts={})
