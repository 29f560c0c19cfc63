"""What an answer costs: on a tree of a Jetson, with a program that prints as nvidia-smi does, and here."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.frontier import COSTS, frontier, mean_scores
from bench.nvidia_smi import RAIL, GpuLog
from bench.perf import Perf, perf_from_json
from bench.roofline import Bandwidth, cpu_bandwidth, decoder_bytes, measured_bandwidth, roofline
from bench.subject import open_subject
from bench.timed import costs, summarise
from bench.types import Answer, SubjectSpec
from bench.watch import NO_MONITOR, Watch, idle_power
from genrecal.core.errors import BenchError
from tests.bench.test_gate import report, result
from tests.edge.jetson.trees import meminfo, orin_nano, put


def answer(first_s, total_s, tokens=5):
    return Answer(text="", tokens=tokens, prompt_tokens=1, first_token_s=first_s, total_s=total_s)


RUNS = [[answer(1.0, 3.0), answer(2.0, 2.0, tokens=1)], [answer(1.2, 2.2), answer(2.2, 2.2, tokens=1)]]


def perf(**more) -> Perf:
    return replace(summarise(RUNS, memory=1, gpu=None, weights=2_000_000), **more)


def test_percentiles_are_over_all_answers_and_the_spread_over_runs():
    found = perf()
    assert (found.queries, found.runs) == (2, 2)
    assert found.first_token_s_p50 == pytest.approx(1.6) and found.tokens_per_s_p50 == pytest.approx(3.0)
    assert found.spread["first_token_s"] == pytest.approx((1.5, 1.7))
    assert found.spread["tokens_per_s"] == pytest.approx((2.0, 4.0))
    with pytest.raises(BenchError, match="first token"):
        summarise([[replace(RUNS[0][0], first_token_s=None)]], memory=1, gpu=None, weights=1)


def test_energy_and_shared_memory_of_a_jetson_with_the_rail_they_came_from(tmp_path: Path):
    root = orin_nano(tmp_path)
    with Watch("jetson", root=root) as whole, Watch("jetson", root=root, idle_watts=4.0) as work:
        put(root, {"proc/meminfo": meminfo(7_800_000, 1_500_000, nvmap=4_000_000, cma=10_000)})
        time.sleep(0.3)
    missing: dict[str, str] = {}
    found = perf(**costs(perf(), whole.result(), work.result(), device="jetson", missing=missing))
    energy = found.energy
    assert missing == {} and energy is not None and energy.rail == "VDD_IN"
    # Four answers in the stretch at a steady 5 W, 4 W of which the board takes anyway.
    assert energy.mean_w == pytest.approx(5.0) and energy.net_j == pytest.approx(energy.gross_j / 5)
    assert energy.gross_j_per_token == pytest.approx(energy.gross_j / 3)
    assert found.device_memory_bytes is not None and found.device_memory_bytes > 1e9
    assert "MemAvailable" in (found.device_memory_rule or "")
    assert found.board is not None and "Orin Nano" in found.board and "power mode" in found.board
    assert found.throttling == "none"


def test_what_this_machine_cannot_measure_is_said_and_is_never_zero(tmp_path: Path):
    with Watch("cpu", root=tmp_path) as watch:
        pass
    missing: dict[str, str] = {}
    found = perf(**costs(perf(), watch.result(), watch.result(), device="cpu", missing=missing))
    assert found.energy is None and found.device_memory_bytes is None
    assert missing["energy"] == NO_MONITOR and "CPU" in missing["device memory"]
    assert idle_power("cpu", root=tmp_path) is None
    assert measured_bandwidth("jetson") is None or measured_bandwidth("cuda") is not None


def test_lines_of_nvidia_smi():
    log = GpuLog()
    for second, line in enumerate(["1024, 70.0", "2048, 110.0", "[N/A], [N/A]", "", "1536, [N/A]", "0, 90"]):
        log.add(line, float(second))
    assert log.used_bytes == [1024 * 2**20, 2048 * 2**20, 1536 * 2**20, 0]
    energy = log.energy(idle_w=60.0)
    assert energy is not None and energy.rule == f"sum of {RAIL}"
    assert energy.gross_j == pytest.approx(90 + 4 * 100) and energy.net_j == pytest.approx(490 - 300)


def test_a_gpu_is_read_while_the_work_lasts(tmp_path: Path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1000, 80.0'\nwhile sleep 0.05; do echo '5000, 100.0'; done\n")
    program.chmod(0o755)
    with Watch("cuda", root=tmp_path, nvidia_smi=str(program)) as watch:
        time.sleep(0.5)
    found = watch.result()
    assert found.memory_bytes == 4000 * 2**20 and found.energy is not None
    assert 80 < found.energy.mean_w <= 100
    with Watch("cuda", root=tmp_path, nvidia_smi="false") as watch:
        pass
    assert watch.result().memory_bytes is None and watch.result().energy is None


def test_weights_that_a_token_reads(student_folder: Path, build_folder: Path):
    student = open_subject(SubjectSpec(path=student_folder, name="student"))
    model = student.model  # type: ignore[attr-defined]
    head = model.get_output_embeddings().weight
    tied = head.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    read = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if "visual" not in name and (tied or "embed_tokens" not in name)
    )
    assert decoder_bytes(student_folder, student.facts) == 4 * read
    build = open_subject(SubjectSpec(path=build_folder, name="build"))
    on_disk = decoder_bytes(build_folder, build.facts)
    # The same weights in fp32, with the graph's nodes around them.
    assert on_disk is not None and 4 * read < on_disk < 4 * read + 200_000
    assert decoder_bytes(student_folder, replace(student.facts, precision="int3")) is None


def test_the_share_of_the_roofline():
    found = roofline(50.0, 10**9, Bandwidth(bytes_per_s=10**11, how="by hand"))
    assert found.share == pytest.approx(0.5)
    measured = cpu_bandwidth(2, array_bytes=2**25)
    assert 1e8 < measured.bytes_per_s < 1e13 and "2 threads" in measured.how


def test_figures_read_back_from_json():
    line = roofline(50.0, 10**9, Bandwidth(bytes_per_s=1e11, how="by hand"))
    whole = perf(roofline=line, missing={"energy": NO_MONITOR})
    assert perf_from_json(json.loads(json.dumps(asdict(whole)))) == whole
    # bench.json of before these figures were there.
    fields = (
        "warm_up",
        "runs",
        "spread",
        "size_bytes",
        "energy",
        "roofline",
        "missing",
        "board",
        "throttling",
    )
    old = {key: value for key, value in asdict(perf()).items() if key not in fields}
    assert perf_from_json(old).missing == {} and perf_from_json(old).runs == 1


def test_the_frontier_holds_whom_nobody_beats():
    def subject(name, right, total_s):
        hits = {str(number): float(number < right) for number in range(100)}
        return replace(report(name, mmb=result(hits)), perf=perf(total_s_p50=total_s))

    reports = [subject("slow", 90, 3.0), subject("beaten", 70, 2.0), subject("quick", 80, 1.0)]
    reports += [subject("same", 80, 1.0), replace(subject("untimed", 99, 1.0), perf=None)]
    means, shared = mean_scores(reports)
    assert shared == ("mmb",) and means["quick"] == 0.8
    points = frontier(reports, COSTS["latency"], means)
    assert [(point.name, point.best) for point in points] == [
        ("quick", True),
        ("same", True),
        ("beaten", False),
        ("slow", True),
    ]
    assert frontier(reports, COSTS["energy"], means) == []
    assert frontier(reports, COSTS["latency"], {}) == [] and mean_scores([]) == ({}, ())
