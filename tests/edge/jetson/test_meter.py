"""Energy, memory and throttling of a stretch of time, on trees that change while it lasts."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from edge.jetson.memory import read_memory
from edge.jetson.meter import Meter, Report
from edge.jetson.throttle import read_throttle
from tests.edge.jetson.trees import agx_orin, meminfo, orin_nano, put, thor


def measured(root: Path, work: object = None, **options: float) -> Report:
    with Meter(root, **options) as meter:
        if callable(work):
            work()
        time.sleep(0.25)
    assert meter.report is not None
    return meter.report


def test_a_quiet_stretch_on_an_orin_nano(tmp_path: Path) -> None:
    report = measured(orin_nano(tmp_path), idle_w=4.0, rate_hz=50)
    assert report.board is not None and report.energy is not None and report.memory_before is not None
    energy = report.energy
    assert energy.mean_w == pytest.approx(5.0) and energy.gross_j == pytest.approx(5 * energy.seconds)
    assert energy.net_j == pytest.approx(energy.seconds) and energy.rule == "VDD_IN"
    assert report.missed == 0 and not report.throttling.throttled
    assert report.throttling.hottest_celsius == {
        "cpu-thermal": 48.312,
        "gpu-thermal": 47.5,
        "tj-thermal": 48.5,
    }
    assert report.throttling.describe() == "none"
    assert (
        report.memory_before.nvmap_used == 512_000 * 1024 and report.memory_before.cma_free == 200_000 * 1024
    )
    assert json.loads(json.dumps(report.as_json()))["throttled"] is False


def test_memory_that_comes_and_goes_is_seen(tmp_path: Path) -> None:
    root = agx_orin(tmp_path)

    def work() -> None:
        put(root, {"proc/meminfo": meminfo(31_300_000, 9_000_000, nvmap=15_000_000, cma=10_000)})
        time.sleep(0.2)
        put(root, {"proc/meminfo": meminfo(31_300_000, 26_000_000, nvmap=1_000_000, cma=40_000)})

    report = measured(root, work, rate_hz=50)
    assert report.lowest_available_bytes == 9_000_000 * 1024
    assert report.memory_before is not None and report.memory_before.available == 27_000_000 * 1024
    assert report.memory_after is not None and report.memory_after.available == 26_000_000 * 1024


def test_throttling_in_the_middle_is_reported(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    put(root, {"sys/class/hwmon/hwmon3/oc2_event_cnt": 7})  # from before: not of this stretch

    def work() -> None:
        put(
            root,
            {"sys/class/hwmon/hwmon3/oc3_event_cnt": 27, "sys/class/thermal/cooling_device2/cur_state": 2},
        )
        put(
            root,
            {"sys/class/thermal/thermal_zone2/temp": 99_500, "sys/class/hwmon/hwmon1/curr1_max_alarm": 1},
        )
        time.sleep(0.7)
        put(
            root,
            {
                "sys/class/thermal/cooling_device2/cur_state": 0,
                "sys/class/thermal/thermal_zone2/temp": 60_000,
            },
        )

    throttling = measured(root, work).throttling
    assert throttling.throttled and throttling.over_current == {"oc3": 27}
    assert throttling.brakes == {"gpu-throttle-alert": 2} and throttling.alarms == ("VDD_IN",)
    assert throttling.hottest_celsius["tj-thermal"] == 99.5
    assert throttling.describe() == (
        "gpu-throttle-alert at 2, instantaneous over-current 27x, VDD_IN above its limit"
    )


def test_a_thor_has_no_nvmap(tmp_path: Path) -> None:
    memory = read_memory(thor(tmp_path))
    assert memory is not None and memory.nvmap_used is None and memory.cma_free is None
    assert memory.total == 128_800_000 * 1024


def test_a_monitor_that_fails_is_counted(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)

    def work() -> None:
        (root / "sys/class/hwmon/hwmon1/in1_input").unlink()

    report = measured(root, work, rate_hz=50)
    assert report.missed > 0


def test_another_machine_tells_its_memory_alone(tmp_path: Path) -> None:
    put(tmp_path, {"proc/meminfo": meminfo(1000, 500, nvmap=None, cma=None)})
    report = measured(tmp_path)
    assert report.board is None and report.energy is None and report.missed == 0
    assert report.lowest_available_bytes == 500 * 1024 and not report.throttling.throttled
    assert read_throttle(tmp_path / "nowhere").celsius == {}


def test_an_error_inside_still_ends_the_thread(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Meter(orin_nano(tmp_path)):
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name == "power-sampler"]
