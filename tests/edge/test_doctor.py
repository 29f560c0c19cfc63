"""What is missing, on file trees that are written here by hand: a laptop, Jetsons of several JetPacks, broken
installations. None of them was recorded on a board."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
from typer.testing import CliRunner

import cli
from edge import device
from edge.doctor import CUDA_PROVIDER as CUDA
from edge.doctor import LEAST_MEMORY_GB, TENSORRT_PROVIDER, Finding, doctor, edge_findings
from edge.jetson.wheels import JETPACKS, OLDEST_RUNTIME, older
from edge.memory import KEPT, SHARE, encoder_shape
from edge.preprocess.picture import Picture
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
    ("release", "index", "python", "wheel"),
    [
        (36, "jp6/cu126", (3, 10), "onnxruntime_gpu 1.23.2 or newer, cp310 linux_aarch64, for CUDA 12.6"),
        (38, "sbsa/cu130", (3, 12), "onnxruntime_gpu 1.23.2 or newer, cp312 linux_aarch64, for CUDA 13.0"),
    ],
)
def test_a_jetson_without_its_gpu(
    tmp_path: Path, release: int, index: str, python: tuple[int, int], wheel: str
) -> None:
    found = findings(machine(tmp_path, release=release), python=python)["GPU"]
    assert found.state == "missing" and found.what.endswith(f"The wheel that fits: {wheel}")
    fix = str(found.fix)
    assert 'pip install --index-url "$JETSON_INDEX_URL" "onnxruntime-gpu>=1.23.2"' in fix
    assert "README of the jetson-containers project" in fix and fix.endswith(f"/{index} at its end")
    other = findings(tmp_path, python=(3, 11))["GPU"]
    assert other.what.endswith(f"made for Python {JETPACKS[str(release)].python}, while this is 3.11")


def test_no_package_index_is_named_by_its_address(tmp_path: Path) -> None:
    """Addresses move, and whoever takes one over gives the device its code."""
    for one in findings(orin_nano(tmp_path)).values():
        assert "://" not in f"{one.what} {one.fix}"


def test_a_board_s_own_gpu_is_named(tmp_path: Path) -> None:
    """A wheel for another one lists the provider and has no kernels."""
    assert "built for compute capability 8.7" in findings(orin_nano(tmp_path))["GPU"].what


def test_a_jetson_that_is_newer_than_this(tmp_path: Path) -> None:
    root = machine(tmp_path, release=38)
    (root / "etc/nv_tegra_release").write_text("# R39 (release), REVISION: 2.0, GCID: 1")
    found = findings(root, python=(3, 12))["GPU"]
    assert found.state == "missing" and "R39 is not known here" in found.what


def test_the_oldest_runtime_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"onnxruntime>={OLDEST_RUNTIME}" in project["project"]["optional-dependencies"]["edge"]
    assert older("1.22.9") and older("1.23.1+cu126") and not older("1.23.2rc1") and not older("1.31")
    old = findings(machine(tmp_path, release=36), {**ALL, "onnxruntime": "1.22.0"})["onnxruntime"]
    assert old.state == "missing" and "1.23.2 is the oldest" in old.what
    assert old.fix == 'pip install --upgrade "onnxruntime>=1.23.2"'
    installed = {name: version for name, version in ALL.items() if name != "onnxruntime"}
    gpu = findings(tmp_path, {**installed, "onnxruntime-gpu": "1.20.1"}, providers=lambda: [CUDA])
    assert gpu["onnxruntime"].state == "missing" and "$JETSON_INDEX_URL" in str(gpu["onnxruntime"].fix)


def test_tensorrt_is_looked_for_on_a_jetson_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert "TensorRT" not in findings(machine(tmp_path / "other"))
    root = machine(tmp_path, release=36)
    lacking = findings(root, providers=lambda: [CUDA])["TensorRT"]
    assert lacking.state == "note" and "jetson-tensorrt alone" in lacking.what
    both = {"providers": lambda: [TENSORRT_PROVIDER, CUDA]}
    assert findings(root, **both)["TensorRT"].state == "ok"
    without = findings(root, **both, find_library=lambda name: None if name == "nvinfer" else name)
    assert without["TensorRT"].state == "note" and "no libnvinfer" in without["TensorRT"].what


def test_an_old_jetson(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, release=35), python=(3, 8))
    assert found["Python"].state == "missing" and "3.10 is the oldest" in found["Python"].what
    assert "Take JetPack 6 or newer" in str(found["GPU"].fix)


def test_a_jetson_with_its_gpu(tmp_path: Path) -> None:
    installed = {**ALL, "onnxruntime-gpu": "1.23.2"}
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
    edge, serve, sign = (found[f"packages of genrecal[{extra}]"] for extra in ("edge", "serve", "sign"))
    assert (
        sign.state == "note"
        and sign.what == "cryptography not installed; wanted by --trusted-key, for signed builds"
    )
    assert sign.fix is not None and 'pip install "genrecal[sign]"' in sign.fix
    assert edge.state == "missing" and edge.what.startswith("tokenizers not installed")
    assert serve.state == "note" and 'pip install "genrecal[serve]"' in str(serve.fix)
    assert found["onnxruntime"].state == "missing"
    with pytest.raises(DeviceError, match=r"lacks packages of genrecal\[edge\], onnxruntime"):
        doctor(list(found.values()))


def test_little_memory(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, free_gb=1.5))["memory"]
    assert found.state == "note" and found.what == "1.5 of 7.8 GB free" and "desktop" in str(found.fix)


def test_the_least_memory_is_the_sum_in_the_docs() -> None:
    """Weights by their number and bits; the encoder's share by the runtime's own rule."""
    products, table, vision = 1_310_195_712, 233_373_696, 665_271_296
    weights = products * 4.5 / 8 + table * (8.5 + 8) / 8 + vision * 2
    shape = encoder_shape({"vision_config": {"embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14}}, tiles=4)
    pixels = np.zeros((4 * 1280, 1176), np.float32)
    picture = Picture(inputs={"pixel_values": pixels}, grid=(1, 64, 80), prompt=(1280,))
    need = (weights + shape.workspace_bytes(picture) / (1 - KEPT)) / SHARE
    assert round(need / 1e9, 1) == LEAST_MEMORY_GB
    text = (Path(__file__).parents[2] / "docs/edge.md").read_text(encoding="utf-8")
    assert f"{LEAST_MEMORY_GB:.1f} GB" in text


def test_it_runs_where_onnxruntime_is_missing() -> None:
    """What it is for; its providers are called as the runtime calls them."""
    assert (CUDA, TENSORRT_PROVIDER) == (device.CUDA_PROVIDER, device.TENSORRT_PROVIDER)
    program = "import sys; sys.modules['onnxruntime'] = None; import edge.doctor"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_this_machine() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--for", "edge"])
    assert result.exit_code == 0, result.output
    assert "packages of genrecal[edge]: numpy" in result.stdout and "onnxruntime" in result.stdout
    result = CliRunner().invoke(cli.app, ["doctor", "--for", "train"])
    assert result.exit_code == 2 and "Known: edge" in result.stderr
