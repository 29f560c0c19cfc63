"""`genrecal doctor --for edge`: what this machine lacks to answer with a build, and where it comes from.

Python, packages, onnxruntime's providers, the GPU's libraries, memory -> findings, each with what to do
"""

from __future__ import annotations

import ctypes.util
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from edge.jetson.board import Module, read_board
from edge.jetson.power import find_rails, total_rule
from edge.jetson.throttle import OVER_CURRENT, read_throttle
from edge.jetson.wheels import JETPACKS, OLDEST_RUNTIME, jetson_release, line_of, older, wheel_of
from genrecal.core.console import console
from genrecal.core.errors import DeviceError

State = Literal["ok", "note", "missing"]
OLDEST_PYTHON = (3, 10)
# Extra -> what it is for.
EXTRAS = {
    "edge": "genrecal ask",
    "serve": "genrecal serve",
    "sign": "--trusted-key, for signed builds",
}
# Distribution -> the extra that needs it.
PACKAGES = {
    "numpy": "edge",
    "pillow": "edge",
    "jinja2": "edge",
    "pydantic": "edge",
    "tokenizers": "edge",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "cryptography": "sign",
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# edge/device.py has them too, but imports onnxruntime, which may be what is missing.
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# What the CUDA provider loads, by the name that the system's linker finds it by.
CUDA_LIBRARIES = {"cudart": "CUDA runtime", "cublas": "cuBLAS", "cudnn": "cuDNN"}
# For Qwen2-VL-2B in int4 on a Jetson with an image of 1,280 tokens; docs/edge.md has the sum.
LEAST_MEMORY_GB = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    what: str
    fix: str | None = None


def edge_findings(
    root: Path = Path("/"),
    *,
    python: Sequence[int] = sys.version_info[:2],
    version_of: Callable[[str], str | None] | None = None,
    providers: Callable[[], Sequence[str]] | None = None,
    find_library: Callable[[str], str | None] = ctypes.util.find_library,
) -> list[Finding]:
    """Look at this machine.

    Args:
        root: the root of the file system.
        python: version of the interpreter.
        version_of: an installed distribution's version; None where it is not there.
        providers: onnxruntime's execution providers.
        find_library: where the system's linker finds a library.
    """
    installed = version_of or _version_of
    return [
        _python(python),
        *_packages(installed),
        *_runtime(installed, providers or _providers, root, python, find_library),
        *_memory(root),
        *_board(root),
    ]


def doctor(findings: Sequence[Finding]) -> None:
    """Print what was found.

    Raises:
        DeviceError: something is missing; its lines were printed.
    """
    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    for one in findings:
        console.print(f"{one.state:8}", style=colours[one.state], end="")
        console.print(f"{one.name}: {one.what}", markup=False, soft_wrap=True)
        if one.fix:
            console.print(f"        -> {one.fix}", markup=False, soft_wrap=True)
    missing = [one.name for one in findings if one.state == "missing"]
    if missing:
        raise DeviceError(f"this machine lacks {', '.join(missing)}", fix="Each line above says what to do")


def _python(version: Sequence[int]) -> Finding:
    what = f"{version[0]}.{version[1]} on {platform.machine()}"
    if tuple(version) >= OLDEST_PYTHON:
        return Finding(name="Python", state="ok", what=what)
    return Finding(
        name="Python",
        state="missing",
        what=f"{what}; 3.10 is the oldest that works",
        fix="Take a JetPack of version 6 or newer, or install another Python beside the system's",
    )


def _packages(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    for extra, purpose in EXTRAS.items():
        versions = {name: version_of(name) for name, needs in PACKAGES.items() if needs == extra}
        lacking = [name for name, version in versions.items() if version is None]
        if not lacking:
            shown = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(name=f"packages of genrecal[{extra}]", state="ok", what=shown)
            continue
        yield Finding(
            name=f"packages of genrecal[{extra}]",
            state="missing" if extra == "edge" else "note",
            what=f"{', '.join(lacking)} not installed; wanted by {purpose}",
            fix=f'pip install "genrecal[{extra}]"; offline: genrecal wheelhouse on another machine',
        )


def _runtime(
    version_of: Callable[[str], str | None],
    providers: Callable[[], Sequence[str]],
    root: Path,
    python: Sequence[int],
    find_library: Callable[[str], str | None],
) -> Iterator[Finding]:
    name = "onnxruntime"
    versions = {runtime: version for runtime in RUNTIMES if (version := version_of(runtime))}
    release = jetson_release(root)
    if not versions:
        yield Finding(
            name=name, state="missing", what="not installed", fix='pip install "genrecal[edge]" (for the CPU)'
        )
        return
    if len(versions) == 2:
        yield Finding(
            name=name,
            state="missing",
            what="onnxruntime and onnxruntime-gpu lie over each other; which one is loaded is chance",
            fix="pip uninstall --yes onnxruntime onnxruntime-gpu, then install the one that you want",
        )
        return
    available = providers()
    shown = ", ".join(f"{runtime} {version}" for runtime, version in versions.items())
    yield _version(versions, f"{shown}: {', '.join(available) or 'no provider'}", release)
    if CUDA_PROVIDER in available:
        yield from _libraries(find_library)
    elif release:
        yield _jetson_gpu(release, root, python)
    else:
        yield Finding(
            name="GPU",
            state="note",
            what="this onnxruntime answers on the CPU alone",
            fix="With an NVIDIA GPU: pip uninstall --yes onnxruntime; "
            f'pip install "onnxruntime-gpu>={OLDEST_RUNTIME}"',
        )
    if release:
        yield _tensorrt(available, find_library)


def _version(versions: Mapping[str, str], shown: str, release: str | None) -> Finding:
    """Of the one runtime that is there."""
    ((runtime, version),) = versions.items()
    if not older(version):
        return Finding(name="onnxruntime", state="ok", what=shown)
    jetpack = JETPACKS.get(release) if release and runtime == "onnxruntime-gpu" else None
    return Finding(
        name="onnxruntime",
        state="missing",
        what=f"{shown}; {OLDEST_RUNTIME} is the oldest that has all operators of a build",
        fix=line_of(jetpack) if jetpack else f'pip install --upgrade "{runtime}>={OLDEST_RUNTIME}"',
    )


def _jetson_gpu(release: str, root: Path, python: Sequence[int]) -> Finding:
    jetpack = JETPACKS.get(release)
    if jetpack is None:
        if int(release) < min(map(int, JETPACKS)):
            what = f"Jetson Linux R{release} has no onnxruntime-gpu for Python 3.10 or newer"
            fix = "Take JetPack 6 or newer; --device cpu works as it is"
        else:
            what = f"Jetson Linux R{release} is not known here; this onnxruntime has no {CUDA_PROVIDER}"
            fix = (
                f"Install an onnxruntime-gpu of {OLDEST_RUNTIME} or newer that is built for its CUDA and GPU"
            )
        return Finding(name="GPU", state="missing", what=what, fix=f"{fix} (docs/jetson.md)")
    return Finding(
        name="GPU",
        state="missing",
        what=f"{jetpack.name} without an onnxruntime that has {CUDA_PROVIDER}. The wheel that fits: "
        + wheel_of(jetpack, _module(root), python),
        fix=line_of(jetpack),
    )


def _tensorrt(available: Sequence[str], find_library: Callable[[str], str | None]) -> Finding:
    """Of a Jetson; a note where it lacks, since builds of one target alone want it."""
    wanted = "builds of target jetson-tensorrt alone need it"
    if TENSORRT_PROVIDER not in available:
        return Finding(
            name="TensorRT",
            state="note",
            what=f"this onnxruntime has no {TENSORRT_PROVIDER}; {wanted}",
            fix="Install an onnxruntime-gpu that was built with TensorRT, or export with --target jetson",
        )
    if find_library("nvinfer") is None:
        return Finding(
            name="TensorRT",
            state="note",
            what=f"{TENSORRT_PROVIDER} is there, but the linker finds no libnvinfer; {wanted}",
            fix="sudo apt install nvidia-jetpack",
        )
    return Finding(name="TensorRT", state="ok", what=f"{TENSORRT_PROVIDER} with libnvinfer")


def _libraries(find_library: Callable[[str], str | None]) -> Iterator[Finding]:
    lacking = [shown for name, shown in CUDA_LIBRARIES.items() if find_library(name) is None]
    if lacking:
        yield Finding(
            name="GPU",
            state="missing",
            what=f"{CUDA_PROVIDER} is there, but the linker finds no {', '.join(lacking)}",
            fix="On a Jetson: sudo apt install nvidia-jetpack; elsewhere install CUDA and cuDNN of the "
            "versions that this onnxruntime names in its release notes",
        )
    else:
        yield Finding(
            name="GPU", state="ok", what=f"{CUDA_PROVIDER} with {', '.join(CUDA_LIBRARIES.values())}"
        )


def _memory(root: Path) -> Iterator[Finding]:
    text = _read(root / "proc/meminfo") or ""
    sizes = {name: int(kilobytes) / 1e6 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "MemAvailable" not in sizes:
        return
    free, total = sizes["MemAvailable"], sizes.get("MemTotal", 0.0)
    enough = free >= LEAST_MEMORY_GB
    yield Finding(
        name="memory",
        state="ok" if enough else "note",
        what=f"{free:.1f} of {total:.1f} GB free",
        fix=None
        if enough
        else "End the desktop (sudo systemctl isolate multi-user.target) and other programs",
    )


def _board(root: Path) -> Iterator[Finding]:
    """Of a Jetson: how it is set, which decides its speed, and what its power can be read from."""
    board = read_board(root)
    if board is None:
        return
    mode = board.power_mode
    setting = f"power mode {mode.name or mode.id}" if mode else "power mode unknown"
    clocks = ", ".join(f"{name} {clock.now_mhz:.0f} MHz" for name, clock in board.clocks.items())
    module = f" ({board.module.name})" if board.module else ""
    yield Finding(
        name="board", state="ok", what=", ".join(filter(None, (board.model + module, setting, clocks)))
    )
    rails = [rail.name for rail in find_rails(root)]
    yield Finding(
        name="power",
        state="ok" if rails else "note",
        what=f"rails {', '.join(rails)}; total: {total_rule(rails)}" if rails else "no power monitor answers",
        fix=None if rails else "Energy is not reported; in a container, mount the host's /sys",
    )
    throttle = read_throttle(root)
    events = {OVER_CURRENT.get(name, name): count for name, count in throttle.over_current.items() if count}
    if throttle.brakes or events or throttle.alarms:
        seen = [f"{name} {count}x since the start" for name, count in events.items()]
        yield Finding(
            name="throttling",
            state="note",
            what=", ".join(
                (*throttle.brakes, *seen, *(f"{rail} above its limit" for rail in throttle.alarms))
            ),
            fix="Cool the board, take a stronger supply, or a lower power mode",
        )


def _module(root: Path) -> Module | None:
    board = read_board(root)
    return board.module if board else None


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _providers() -> Sequence[str]:
    import onnxruntime

    return onnxruntime.get_available_providers()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
