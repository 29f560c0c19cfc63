"""What is missing, on recorded machines: a laptop, Jetsons of several JetPacks, broken installations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from edge.doctor import CUDA, Finding, doctor, edge_findings
from genrecal.core.errors import DeviceError
from tests.edge.jetson.trees import orin_nano, put

ALL = {"onnxruntime": "1.23.2"} | dict.fromkeys(
    ("numpy", "pillow", "jinja2", "pydantic", "tokenizers", "starlette", "uvicorn", "prometheus_client"),
    "1.0",
)
RELEASES = {
    35: "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64",
    36: "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    38: "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64",
}


def machine(folder: Path, *, release: int | None = None, free_gb: float = 6.0) -> Path:
    """A file system with the files that are read."""
    (folder / "proc").mkdir()
    meminfo = f"MemTotal: 7800000 kB\nMemFree: 100 kB\nMemAvailable: {int(free_gb * 1e6)} kB\n"
    (folder / "proc/meminfo").write_text(meminfo)
    if release:
        (folder / "etc").mkdir()
        (folder / "etc/nv_tegra_release").write_text(RELEASES[release] + "\n# KERNEL_VARIANT: oot\n")
    return folder


def findings(root: Path, installed: dict[str, str] | None = None, **given: Any) -> dict[str, Finding]:
    known = ALL if installed is None else installed
    options = {
        "python": (3, 10),
        "version_of": known.get,
        "providers": lambda: ["CPUExecutionProvider"],
        "find_library": lambda name: f"lib{name}.so",
        **given,
    }
    return {one.name: one for one in edge_findings(root, **options)}


def test_a_jetson_tells_how_it_is_set(tmp_path: Path) -> None:
    found = findings(orin_nano(tmp_path))
    assert found["board"].what == (
        "NVIDIA Jetson Orin Nano Developer Kit Super (Orin Nano), power mode MAXN_SUPER, "
        "cpu 1728 MHz, gpu 1020 MHz, emc 3199 MHz"
    )
    assert found["power"].what == "rails VDD_IN, VDD_CPU_GPU_CV, VDD_SOC; total: VDD_IN"
    assert "throttling" not in found
    put(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": 5})
    assert findings(tmp_path)["throttling"].what == "instantaneous over-current 5x since the start"


def test_a_machine_that_has_all_for_its_cpu(tmp_path: Path) -> None:
    found = findings(machine(tmp_path))
    assert {one.state for one in found.values()} == {"ok", "note"}
    assert found["GPU"].state == "note" and "CPU alone" in found["GPU"].what
    doctor(list(found.values()))


@pytest.mark.parametrize(
    ("release", "index", "python"), [(36, "jp6/cu126", (3, 10)), (38, "sbsa/cu130", (3, 12))]
)
def test_a_jetson_without_its_gpu(tmp_path: Path, release: int, index: str, python: tuple[int, int]) -> None:
    found = findings(machine(tmp_path, release=release), python=python)["GPU"]
    assert found.state == "missing" and index in found.what and "are made for" not in found.what
    assert "--index-url JETSON_INDEX_URL onnxruntime-gpu" in str(found.fix) and index in str(found.fix)
    other = findings(tmp_path, python=(3, 11))["GPU"]
    assert "its wheels are made for Python" in other.what


def test_an_old_jetson(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, release=35), python=(3, 8))
    assert found["Python"].state == "missing" and "3.10 is the oldest" in found["Python"].what
    assert "Take JetPack 6 or newer" in str(found["GPU"].fix)


def test_a_jetson_with_its_gpu(tmp_path: Path) -> None:
    installed = {**ALL, "onnxruntime-gpu": "1.23.0"}
    installed.pop("onnxruntime")
    options = {"providers": lambda: [CUDA, "CPUExecutionProvider"]}
    root = machine(tmp_path, release=36)
    assert findings(root, installed, **options)["GPU"].state == "ok"
    lacking = findings(root, installed, **options, find_library={"cudart": "x"}.get)["GPU"]
    assert lacking.state == "missing" and "no cuBLAS, cuDNN" in lacking.what
    assert "sudo apt install nvidia-jetpack" in str(lacking.fix)


def test_two_runtimes_over_each_other(tmp_path: Path) -> None:
    found = findings(machine(tmp_path), {**ALL, "onnxruntime-gpu": "1.23.0"})["onnxruntime"]
    assert found.state == "missing" and "lie over each other" in found.what


def test_missing_packages(tmp_path: Path) -> None:
    installed = {name: "1.0" for name in ALL if name not in ("tokenizers", "uvicorn", "onnxruntime")}
    found = findings(machine(tmp_path), installed)
    edge, serve = (found[f"packages of genrecal[{extra}]"] for extra in ("edge", "serve"))
    assert edge.state == "missing" and edge.what.startswith("tokenizers not installed")
    assert serve.state == "note" and 'pip install "genrecal[serve]"' in str(serve.fix)
    assert found["onnxruntime"].state == "missing"
    with pytest.raises(DeviceError, match=r"lacks packages of genrecal\[edge\], onnxruntime"):
        doctor(list(found.values()))


def test_little_memory(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, free_gb=1.5))["memory"]
    assert found.state == "note" and found.what == "1.5 of 7.8 GB free" and "desktop" in str(found.fix)


def test_this_machine() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--for", "edge"])
    assert result.exit_code == 0, result.output
    assert "packages of genrecal[edge]: numpy" in result.stdout and "onnxruntime" in result.stdout
    result = CliRunner().invoke(cli.app, ["doctor", "--for", "train"])
    assert result.exit_code == 2 and "Known: edge" in result.stderr
