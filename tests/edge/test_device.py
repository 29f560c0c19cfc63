"""Devices: a Jetson is recognised by its files, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from edge.build import PRECISIONS, TARGETS
from edge.device import CUDA_PROVIDER, Device, detect_device, jetson_board, require_device, require_made_for
from genrecal.core.errors import DeviceError

MODELS = [
    b"NVIDIA Jetson Orin Nano Developer Kit\0",
    b"Jetson-AGX\0",
    b"NVIDIA Orin NX Developer Kit\0",
    b"NVIDIA Jetson AGX Thor Developer Kit\0",
]


def root(folder: Path, model: bytes | None = None, release: bytes | None = None) -> Path:
    """A file system with the files by which a board tells what it is."""
    for name, content in (("proc/device-tree/model", model), ("etc/nv_tegra_release", release)):
        if content is not None:
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_a_jetson_is_recognised(tmp_path: Path, model: bytes) -> None:
    assert jetson_board(root(tmp_path, model)) == model.rstrip(b"\0").decode()


def test_jetson_linux_is_recognised_without_a_device_tree(tmp_path: Path) -> None:
    release = b"# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n# KERNEL_VARIANT: oot\n"
    assert jetson_board(root(tmp_path, release=release)) == (
        "Jetson Linux, R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic"
    )


@pytest.mark.parametrize(
    "model", [None, b"", b"Raspberry Pi 5 Model B Rev 1.0\0", b"linux,dummy-virt\0", b"\xff\0"]
)
def test_other_machines_are_no_jetson(tmp_path: Path, model: bytes | None) -> None:
    assert jetson_board(root(tmp_path, model)) is None
    with pytest.raises(DeviceError) as caught:
        require_device("jetson", tmp_path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(
        "this machine is no Jetson. On a Jetson: copy the build"
    )
    assert "onnxruntime-gpu" in message and message.endswith("genrecal bench BUILD --device jetson")


def test_a_jetson_without_cuda_is_not_passed_off_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    folder = root(tmp_path, MODELS[0])
    with pytest.raises(
        DeviceError, match=r"Orin Nano Developer Kit: the onnxruntime .* has no CUDA"
    ) as caught:
        require_device("jetson", folder)
    assert "Jetson's onnxruntime-gpu" in str(caught.value)
    assert detect_device(folder).name == require_device("cpu", folder).name == "cpu"


def test_a_jetson_with_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [CUDA_PROVIDER, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    board, other = root(tmp_path / "board", MODELS[0]), root(tmp_path / "other", b"Some Server\0")
    device = require_device("jetson", board)
    assert device == detect_device(board)
    assert list(device.providers) == both and device.memory == "cuda"
    assert detect_device(other).name == "cuda"


def test_cuda_where_there_is_none() -> None:
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip(f"SKIPPED LOUDLY: this onnxruntime has {CUDA_PROVIDER}")
    with pytest.raises(DeviceError, match=r"has no CUDAExecutionProvider. Install onnxruntime-gpu"):
        require_device("cuda")


def test_a_device_that_does_not_exist() -> None:
    with pytest.raises(DeviceError, match=r"no device is called 'npu'. Known devices: cpu, cuda, jetson"):
        require_device("npu")


def test_the_cpu_is_always_there() -> None:
    assert require_device("cpu").providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["cpu", "cuda", "jetson"])
def test_a_build_is_refused_where_its_nodes_would_fall_back(name: str, target: str, precision: str) -> None:
    device = Device(name=name, board=None)
    if name == "cpu" or target != "cpu" or precision == "fp16":
        require_made_for(device, target=target, precision=precision)
        return
    wanted = {"fp32": "fp16"}.get(precision, precision)
    with pytest.raises(DeviceError, match=rf"made for the CPU.*export RUN --{wanted} --target jetson"):
        require_made_for(device, target=target, precision=precision)
