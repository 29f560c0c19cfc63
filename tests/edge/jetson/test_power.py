"""Rails, the rule of the total, and energy against integrals that are known."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.jetson.power import (
    Sampler,
    energy_of,
    find_rails,
    idle_w,
    read_rails,
    total_rule,
    total_w,
)
from tests.edge.jetson.trees import agx_orin, jetpack4_nano, orin_nano, thor

ORIN_NANO = {"VDD_IN": 5.0, "VDD_CPU_GPU_CV": 1.0, "VDD_SOC": 1.5}
AGX_ORIN = {"VDD_GPU_SOC": 3.0, "VDD_CPU_CV": 1.0, "VIN_SYS_5V0": 3.5, "VDDQ_VDD2_1V8AO": 0.5}
THOR = {"VDD_GPU": 2.4, "VDD_CPU_SOC_MSS": 6.48, "VIN_SYS_5V0": 6.5, "VIN": 23.0}


@pytest.mark.parametrize(
    ("tree", "rails", "rule", "watts"),
    [
        (orin_nano, ORIN_NANO, "VDD_IN", 5.0),
        (agx_orin, AGX_ORIN, "sum of VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0, VDDQ_VDD2_1V8AO", 8.0),
        (thor, THOR, "VIN", 23.0),
        (jetpack4_nano, {"POM_5V_IN": 2.4, "POM_5V_GPU": 0.04, "POM_5V_CPU": 0.5}, "POM_5V_IN", 2.4),
    ],
)
def test_rails_of_each_board(
    tmp_path: Path, tree: Callable[[Path], Path], rails: dict[str, float], rule: str, watts: float
) -> None:
    found = read_rails(find_rails(tree(tmp_path)))
    assert found is not None
    assert found == pytest.approx(rails)  # neither "NC" nor the driver's sum, and each rail once
    assert total_rule(list(found)) == rule and total_w(found) == pytest.approx(watts)


def test_a_machine_without_monitors(tmp_path: Path) -> None:
    assert find_rails(tmp_path) == () and read_rails(()) is None
    assert idle_w(tmp_path, seconds=0.01) is None


def test_a_rail_that_does_not_answer_is_no_zero(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    rails = find_rails(root)
    (root / "sys/class/hwmon/hwmon1/curr2_input").write_text("")
    assert read_rails(rails) is None


def test_the_integral_of_a_ramp_and_of_a_wave() -> None:
    times = [0.0, 0.1, 0.3, 1.0]  # unevenly, as threads wake
    ramp = energy_of(times, [{"VDD_IN": 2 + 10 * t, "VDD_SOC": 1.0} for t in times], idle_w=2.0)
    assert ramp is not None
    assert ramp.gross_j == pytest.approx(7.0) and ramp.net_j == pytest.approx(5.0)
    assert (
        ramp.rails_j["VDD_SOC"] == pytest.approx(1.0)
        and ramp.most_w == 12.0
        and ramp.mean_w == pytest.approx(7)
    )
    assert (
        ramp.rule == "VDD_IN" and ramp.samples == 4 and ramp.rate_hz == pytest.approx(3.0) and not ramp.dense
    )
    steps = [number / 50 for number in range(101)]
    wave = energy_of(steps, [{"a": 10 + 5 * math.sin(math.pi * t), "b": 1.0} for t in steps])
    assert wave is not None
    assert wave.gross_j == pytest.approx(22.0, rel=1e-3) and wave.net_j is None and wave.dense


@pytest.mark.parametrize("times", [[], [1.0], [1.0, 1.0]])
def test_too_few_samples_are_no_energy(times: list[float]) -> None:
    assert energy_of(times, [{"VDD_IN": 1.0}] * len(times)) is None


def test_the_sampler_keeps_its_rate_and_ends() -> None:
    taken: list[float] = []
    sampler = Sampler(lambda: taken.append(time.monotonic()), rate_hz=50)
    sampler.start()
    time.sleep(0.5)
    sampler.stop()
    count = len(taken)
    assert 5 < count <= 28  # a busy machine may miss some; a burst would give more
    assert taken == sorted(taken)
    time.sleep(0.05)
    assert len(taken) == count
    assert not [thread for thread in threading.enumerate() if thread.name == "power-sampler"]
