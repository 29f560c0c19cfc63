"""`genrecal doctor --for edge`: what this machine lacks to answer with a build, and where it comes from.

Python, packages, onnxruntime's providers, the GPU's libraries, memory -> findings, each with what to do
"""

from __future__ import annotations

import ctypes.util
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from edge.jetson.board import read_board
from edge.jetson.power import find_rails, total_rule
from edge.jetson.throttle import OVER_CURRENT, read_throttle
from genrecal.core.console import console
from genrecal.core.errors import DeviceError

State = Literal["ok", "note", "missing"]
OLDEST_PYTHON = (3, 10)
# Of the extras `edge` and `serve`: distribution -> what needs it.
PACKAGES = {
    "numpy": "edge",
    "pillow": "edge",
    "jinja2": "edge",
    "pydantic": "edge",
    "tokenizers": "edge",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
CUDA = "CUDAExecutionProvider"
# What the CUDA provider loads, by the name that the system's linker finds it by.
CUDA_LIBRARIES = {"cudart": "CUDA runtime", "cublas": "cuBLAS", "cudnn": "cuDNN"}
# Of the figures that a 2B build in int4 with an image takes (docs/edge.md).
LEAST_MEMORY_GB = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    what: str
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JetPack:
    """What a release of Jetson's Linux comes with."""

    name: str
    python: str
    cuda: str
    index: str
    """The folder of the Jetson AI Lab's package index that has wheels for it."""


# Major release of Jetson Linux (L4T) -> its JetPack
JETPACKS = {
    "36": JetPack(name="JetPack 6", python="3.10", cuda="12.6", index="jp6/cu126"),
    "38": JetPack(name="JetPack 7", python="3.12", cuda="13.0", index="sbsa/cu130"),
}


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
    for extra in ("edge", "serve"):
        versions = {name: version_of(name) for name, needs in PACKAGES.items() if needs == extra}
        lacking = [name for name, version in versions.items() if version is None]
        if not lacking:
            shown = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(name=f"packages of genrecal[{extra}]", state="ok", what=shown)
            continue
        yield Finding(
            name=f"packages of genrecal[{extra}]",
            state="missing" if extra == "edge" else "note",
            what=f"{', '.join(lacking)} not installed"
            + ("; genrecal serve needs them" if extra == "serve" else ""),
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
    release = _jetson_release(root)
    jetpack = JETPACKS.get(release) if release else None
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
    yield Finding(name=name, state="ok", what=f"{shown}: {', '.join(available) or 'no provider'}")
    if CUDA in available:
        yield from _libraries(find_library)
    elif release:
        yield _jetson_gpu(release, jetpack, python)
    else:
        yield Finding(
            name="GPU",
            state="note",
            what="this onnxruntime answers on the CPU alone",
            fix="With an NVIDIA GPU: pip uninstall --yes onnxruntime; pip install onnxruntime-gpu",
        )


def _jetson_gpu(release: str, jetpack: JetPack | None, python: Sequence[int]) -> Finding:
    if jetpack is None:
        return Finding(
            name="GPU",
            state="missing",
            what=f"Jetson Linux R{release} has no onnxruntime-gpu for Python 3.10 or newer",
            fix="Take JetPack 6 or newer; --device cpu works as it is",
        )
    fits = f"{python[0]}.{python[1]}" == jetpack.python
    made = (
        "" if fits else f"; its wheels are made for Python {jetpack.python}, this is {python[0]}.{python[1]}"
    )
    return Finding(
        name="GPU",
        state="missing",
        what=f"{jetpack.name} without an onnxruntime that has {CUDA}; the general package index has none for "
        f"Jetson, the Jetson AI Lab's has (folder {jetpack.index}, CUDA {jetpack.cuda}){made}",
        fix="pip uninstall --yes onnxruntime; pip install --index-url JETSON_INDEX_URL onnxruntime-gpu "
        f"(JETSON_INDEX_URL: that index with /{jetpack.index}, from NVIDIA's Jetson documentation)",
    )


def _libraries(find_library: Callable[[str], str | None]) -> Iterator[Finding]:
    lacking = [shown for name, shown in CUDA_LIBRARIES.items() if find_library(name) is None]
    if lacking:
        yield Finding(
            name="GPU",
            state="missing",
            what=f"{CUDA} is there, but the linker finds no {', '.join(lacking)}",
            fix="On a Jetson: sudo apt install nvidia-jetpack; elsewhere install CUDA and cuDNN of the "
            "versions that this onnxruntime names in its release notes",
        )
    else:
        yield Finding(name="GPU", state="ok", what=f"{CUDA} with {', '.join(CUDA_LIBRARIES.values())}")


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


def _jetson_release(root: Path) -> str | None:
    """The major release of Jetson's Linux; None on other machines."""
    found = re.match(r"#?\s*R(\d+)", _read(root / "etc/nv_tegra_release") or "")
    return found[1] if found else None


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
