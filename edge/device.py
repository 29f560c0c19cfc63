"""Which device this machine is: `cpu`, `cuda` or `jetson`. Nothing here pretends to be another one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime

from genrecal.core.errors import DeviceError

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# device -> ONNX Runtime's providers, in order of preference
PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": (CPU_PROVIDER,),
    "cuda": (CUDA_PROVIDER, CPU_PROVIDER),
    "jetson": (CUDA_PROVIDER, CPU_PROVIDER),
}
# Builds for the CPU that a GPU runs whole: CUDA has neither GroupQueryAttention in float32 nor
# DynamicQuantizeMatMul, which the others hold (genrecal/export/linter.py).
CPU_BUILDS_FOR_GPU = ("fp16",)
# Developer kits name themselves "NVIDIA Jetson Orin Nano ..." or, on some releases, "NVIDIA Orin NX ...".
_JETSON = re.compile(r"jetson|nvidia.*\b(orin|xavier|thor)\b", re.IGNORECASE)
_ON_JETSON = (
    "On a Jetson: copy the build folder there, pip install 'genrecal[edge]' with Jetson's onnxruntime-gpu "
    "wheel in the place of onnxruntime, and run there: genrecal bench BUILD --device jetson"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that this machine really has."""

    name: str
    """cpu, cuda or jetson."""
    board: str | None
    """What a Jetson calls itself, as the system reports it."""
    memory_bytes: int | None = None
    """What ONNX Runtime may take of the GPU's memory for a graph; None: no limit."""
    tensorrt: bool = False
    """Whether TensorRT comes before CUDA, as for the vision graph of a build that is made for it."""

    @property
    def providers(self) -> tuple[str, ...]:
        return (TENSORRT_PROVIDER, *PROVIDERS[self.name]) if self.tensorrt else PROVIDERS[self.name]

    @property
    def memory(self) -> str:
        """Where ONNX Runtime keeps this device's tensors: cpu or cuda."""
        return "cpu" if self.name == "cpu" else "cuda"


def jetson_board(root: Path = Path("/")) -> str | None:
    """The name of the Jetson that this machine is, or None where it is none.

    Args:
        root: the root of the file system, another one where a container mounts its host elsewhere.
    """
    model = _read(root / "proc/device-tree/model")
    if model and _JETSON.search(model):
        return model
    # Jetson's Linux carries this file also where the device tree is hidden, as in some containers.
    release = _read(root / "etc/nv_tegra_release")
    return f"Jetson Linux, {release.splitlines()[0].lstrip('# ')}" if release else None


def within(device: Device, *, limit_bytes: int | None, free_bytes: int) -> Device:
    """The device with a limit of memory: the one given, else on a Jetson, whose GPU shares it, what is free.

    Args:
        device: as it was found.
        limit_bytes: what the user allows; None: nothing was said.
        free_bytes: what the system can still give.
    """
    if device.name == "cpu":
        return device
    if limit_bytes is None and device.name != "jetson":
        return device  # a GPU with memory of its own: the system's tells nothing
    return replace(device, memory_bytes=limit_bytes or free_bytes)


def require_made_for(device: Device, *, target: str, precision: str) -> None:
    """Refuse a build whose graphs the device would leave to the CPU; ONNX Runtime itself says nothing.

    Args:
        device: where the build is opened.
        target: what the build is made for.
        precision: of the build.

    Raises:
        DeviceError: the build is made for the CPU and the device is a GPU that cannot run all of it.
    """
    if device.name == "cpu" or target != "cpu" or precision in CPU_BUILDS_FOR_GPU:
        return
    # CUDA's attention is float16, so --fp32 is refused for jetson as well.
    wanted = "fp16" if precision == "fp32" else precision
    raise DeviceError(
        f"this {precision} build is made for the CPU: on {device.name} its attention in float32 would stay "
        "on the CPU, and every token would be copied to and fro",
        where=device.board,
        fix=f"Make one with: genrecal export RUN --{wanted} --target jetson; or open this with --device cpu",
    )


def for_vision(device: Device, target: str) -> Device:
    """The device as the vision graph of a build for `target` needs it.

    Raises:
        DeviceError: the build is for TensorRT, this is a Jetson, and its onnxruntime has no TensorRT.
    """
    if target != "jetson-tensorrt" or device.name != "jetson":
        return device
    if TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"this build's vision graph is made for TensorRT, the onnxruntime {onnxruntime.__version__} "
            f"installed here has no {TENSORRT_PROVIDER}",
            where=device.board,
            fix="Install one that has it, or export with --target jetson",
        )
    return replace(device, tensorrt=True)


def detect_device(root: Path = Path("/")) -> Device:
    """The best device of this machine: jetson before cuda before cpu."""
    board = jetson_board(root)
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return Device(name="cpu", board=board)
    return Device(name="jetson" if board else "cuda", board=board)


def require_device(name: str, root: Path = Path("/")) -> Device:
    """The device of that name, if this machine is one.

    Raises:
        DeviceError: it is not; the error says how to run there instead.
    """
    if name not in PROVIDERS:
        raise DeviceError(f"no device is called '{name}'", fix=f"Known devices: {', '.join(PROVIDERS)}")
    board = jetson_board(root)
    if name == "jetson" and board is None:
        raise DeviceError("this machine is no Jetson", fix=_ON_JETSON)
    if name != "cpu" and CUDA_PROVIDER not in onnxruntime.get_available_providers():
        fix = (
            _ON_JETSON
            if board
            else "Install onnxruntime-gpu in the place of onnxruntime, or use --device cpu"
        )
        raise DeviceError(
            f"the onnxruntime {onnxruntime.__version__} installed here has no {CUDA_PROVIDER}",
            where=board,
            fix=fix,
        )
    return Device(name=name, board=board)


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().rstrip(b"\0\n").decode("utf-8", errors="replace").strip() or None
    except OSError:
        return None
