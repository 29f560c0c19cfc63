"""File systems as Jetsons show them, written by hand from public descriptions, not recorded on a board.

docs/devices.md says for each where its names and shapes come from. Values are those of an idle board as
people have posted them, or plain round ones. hwmon devices lie where the bus puts them and are linked from
/sys/class/hwmon, as on a board.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NVPMODEL_CONF = """\
# FEATURES
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 >
"""


def put(root: Path, files: Mapping[str, str | int | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else f"{content}\n".encode()
        path.write_bytes(data)


def hwmon(root: Path, number: int, device: str, files: Mapping[str, str | int]) -> Path:
    """A hwmon device below `device`, with its link in /sys/class/hwmon."""
    folder = root / "sys/devices" / device / f"hwmon/hwmon{number}"
    put(folder, files)
    link = root / f"sys/class/hwmon/hwmon{number}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)
    return folder


def ina3221(root: Path, number: int, address: str, rails: Mapping[int, tuple[str, int, int]]) -> Path:
    """An INA3221: channel -> label, mV, mA; and the driver's own sum as channel 7."""
    files: dict[str, str | int] = {"name": "ina3221", "in7_label": "sum of shunt voltages", "in7_input": 99}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files |= {
            f"in{channel}_label": label,
            f"in{channel}_input": millivolts,
            f"curr{channel}_input": milliamperes,
            f"curr{channel}_max_alarm": 0,
            f"curr{channel}_crit_alarm": 0,
        }
    device = f"platform/bus@0/c240000.i2c/i2c-1/{address}"
    folder = hwmon(root, number, device, files)
    driver = root / f"sys/bus/i2c/drivers/ina3221/{address}"
    driver.parent.mkdir(parents=True, exist_ok=True)
    driver.symlink_to(root / "sys/devices" / device)
    return folder


def thermal(root: Path, zones: Mapping[str, int], cooling: Mapping[str, int]) -> None:
    for number, (name, value) in enumerate(zones.items()):
        put(
            root,
            {
                f"sys/class/thermal/thermal_zone{number}/{key}": v
                for key, v in (("type", name), ("temp", value))
            },
        )
    for number, (name, state) in enumerate(cooling.items()):
        folder = f"sys/class/thermal/cooling_device{number}"
        put(root, {f"{folder}/type": name, f"{folder}/cur_state": state, f"{folder}/max_state": 3})


def meminfo(total: int, available: int, *, nvmap: int | None, cma: int | None) -> str:
    """/proc/meminfo in kB."""
    lines = [f"MemTotal:       {total} kB", "MemFree:          123456 kB", f"MemAvailable:   {available} kB"]
    lines += ["Active(anon):     1024 kB", "HugePages_Total:       0"]
    lines += [f"NvMapMemFree:    {4 * 1024} kB", f"NvMapMemUsed:    {nvmap} kB"] if nvmap is not None else []
    lines += ["CmaTotal:         262144 kB", f"CmaFree:          {cma} kB"] if cma is not None else []
    return "\n".join(lines)


def orin_nano(root: Path) -> Path:
    """Orin Nano 8 GB developer kit, JetPack 6.2 in MAXN_SUPER: one monitor, VDD_IN is the total."""
    put(
        root,
        {
            "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Developer Kit Super\0",
            "proc/device-tree/compatible": b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3",
            "etc/nvpmodel.conf": NVPMODEL_CONF,
            "var/lib/nvpmodel/status": "pmode:0002 fmode:fan_mode_quiet",
            "proc/meminfo": meminfo(7_990_000, 6_100_000, nvmap=512_000, cma=200_000),
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 729_600,
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": 729_600,
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": 1_728_000,
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1_728_000,
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_min_freq": 729_600,
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq": 1_728_000,
            "sys/class/devfreq/15340000.vic/cur_freq": 115_200_000,
            "sys/class/devfreq/17000000.gpu/cur_freq": 1_020_000_000,
            "sys/class/devfreq/17000000.gpu/min_freq": 1_020_000_000,
            "sys/class/devfreq/17000000.gpu/max_freq": 1_020_000_000,
            "sys/kernel/debug/bpmp/debug/clk/emc/rate": 3_199_000_000,
        },
    )
    rails = {1: ("VDD_IN", 5000, 1000), 2: ("VDD_CPU_GPU_CV", 5000, 200), 3: ("VDD_SOC", 5000, 300)}
    ina3221(root, 1, "1-0040", rails)
    hwmon(root, 0, "virtual/thermal", {"name": "cpu_thermal"})
    counters = {f"oc{n}_{kind}": v for n in (1, 2, 3) for kind, v in (("event_cnt", 0), ("throt_en", 1))}
    hwmon(root, 3, "platform/soctherm-oc-event", {"name": "soctherm_oc", **counters})
    thermal(
        root,
        {"cpu-thermal": 48_312, "gpu-thermal": 47_500, "tj-thermal": 48_500},
        {"pwm-fan": 2, "cpu-throttle-alert": 0, "gpu-throttle-alert": 0},
    )
    (root / "sys/class/thermal/thermal_zone9").mkdir()  # of a part that is off: its temp cannot be read
    put(root, {"sys/class/thermal/thermal_zone9/type": "cv0-thermal"})
    return root


def agx_orin(root: Path) -> Path:
    """AGX Orin developer kit, JetPack 5: two monitors, two channels not connected, no rail is the total."""
    put(
        root,
        {
            "proc/device-tree/model": b"Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1",
            "proc/meminfo": meminfo(31_300_000, 27_000_000, nvmap=1_000_000, cma=40_000),
            "sys/class/devfreq/17000000.ga10b/cur_freq": 306_000_000,
            "sys/class/devfreq/17000000.ga10b/min_freq": 306_000_000,
            "sys/class/devfreq/17000000.ga10b/max_freq": 1_300_500_000,
        },
    )
    first = {1: ("VDD_GPU_SOC", 20_000, 150), 2: ("VDD_CPU_CV", 20_000, 50), 3: ("VIN_SYS_5V0", 5000, 700)}
    ina3221(root, 3, "1-0040", first)
    ina3221(root, 4, "1-0041", {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: ("NC", 0, 0)})
    return root


def thor(root: Path) -> Path:
    """AGX Thor developer kit, JetPack 7: an INA3221 on the module, an INA238 on the carrier, no NvMap."""
    put(
        root,
        {
            "proc/device-tree/model": b"NVIDIA Jetson AGX Thor Developer Kit\0",
            "proc/device-tree/compatible": b"nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
            "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0",
            "proc/meminfo": meminfo(128_800_000, 120_000_000, nvmap=None, cma=None),
            "sys/class/devfreq/gpu-gpc-0/cur_freq": 1_575_000_000,
            "sys/class/devfreq/gpu-gpc-0/min_freq": 315_000_000,
            "sys/class/devfreq/gpu-gpc-0/max_freq": 1_575_000_000,
            "sys/class/devfreq/bwmgr/cur_freq": 4_266_000_000,
        },
    )
    rails = {1: ("VDD_GPU", 12_000, 200), 2: ("VDD_CPU_SOC_MSS", 12_000, 540), 3: ("VIN_SYS_5V0", 5000, 1300)}
    ina3221(root, 2, "2-0040", rails)
    carrier = {"name": "ina238", "label": "VIN", "in1_input": 20_000, "curr1_input": 1150}
    hwmon(root, 5, "platform/bus@0/i2c-3/3-0044", {**carrier, "power1_input": 23_000_000})
    return root


def jetpack4_nano(root: Path) -> Path:
    """The first Jetson Nano, JetPack 4: the same monitor by the older driver, in iio."""
    put(
        root,
        {
            "proc/device-tree/model": b"NVIDIA Jetson Nano Developer Kit\0",
            "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1",
        },
    )
    folder = root / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for number, (name, milliwatts) in enumerate(
        (("POM_5V_IN", 2400), ("POM_5V_GPU", 40), ("POM_5V_CPU", 500))
    ):
        put(folder, {f"rail_name_{number}": name, f"in_power{number}_input": milliwatts})
    return root
