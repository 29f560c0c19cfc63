"""`genrecal wheelhouse`: all wheels that an offline device needs, collected on a machine that is online.

    checkout -> genrecal's wheel -> pip resolves for the device's Python and platform -> wheels, manifest

pip chooses wheels for another Python, but reads the conditions of dependencies (`python_version < "3.11"`)
for its own. What it leaves out by that is found here from the packages' metadata and asked for by name.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrecal.core.console import console
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import atomic_folder, read_json
from genrecal.core.manifest import NAME as MANIFEST
from genrecal.core.manifest import write_manifest

KIND = "wheelhouse"
# `sign` opens signed builds (`--trusted-key`).
EXTRAS = ("edge", "serve", "sign", "bench")
GPU_WHEEL = "onnxruntime_gpu-"
MACHINES = ("aarch64", "x86_64")
# What a wheel of genrecal is built from.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "cli.py", "genrecal", "edge", "bench")
OLDEST_GLIBC = 17
# Rounds of asking for what the conditions left out; packages that came so may bring more.
ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device's Python and platform."""

    python: str
    """3.10, 3.12 …"""
    machine: str = "aarch64"
    glibc: str = "2.35"
    """JetPack 6 has 2.35, JetPack 7 has 2.39."""

    def options(self) -> list[str]:
        """pip's options for it: wheels alone, of every age that its C library runs."""
        newest = int(self.glibc.partition(".")[2])
        ages = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
        platforms = [*ages, f"manylinux2014_{self.machine}"]
        return [
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", self.python),
            *(word for name in platforms for word in ("--platform", name)),
        ]

    def environment(self) -> dict[str, str]:
        """What the conditions of dependencies are read with."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "platform_python_implementation": "CPython",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "platform_release": "",
            "platform_version": "",
            "sys_platform": "linux",
            "os_name": "posix",
        }


def target_of(python: str, machine: str, glibc: str) -> Target:
    """A target from what a user gave.

    Raises:
        ConfigError: a value that is none.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise ConfigError(f"'{python}' is no version of Python", where="--python", fix="For instance 3.10")
    if machine not in MACHINES:
        raise ConfigError(f"'{machine}'", where="--machine", fix=f"Known: {', '.join(MACHINES)}")
    if not re.fullmatch(r"2\.\d+", glibc):
        raise ConfigError(f"'{glibc}' is no version of glibc", where="--glibc", fix="For instance 2.35")
    return Target(python=python, machine=machine, glibc=glibc)


def collect(
    output: Path,
    *,
    extras: Sequence[str],
    target: Target,
    added: Sequence[Path] = (),
    source: Path | None = None,
) -> Path:
    """Write the wheels of genrecal with `extras` for a device to a folder, with a manifest of their hashes.

    Args:
        output: the folder; an older wheelhouse there is replaced whole, at the end.
        extras: of EXTRAS.
        target: the device.
        added: wheels from elsewhere that go with them, such as a Jetson's onnxruntime-gpu.
        source: genrecal's checkout; None: the one that this module lies in.

    Raises:
        ConfigError: an unknown extra, no checkout, a file that is no wheel, or a folder of something else.
        GenrecalError: pip failed; its last line is quoted.
    """
    root = Path(__file__).parents[1] if source is None else source
    for extra in extras:
        if extra not in EXTRAS:
            raise ConfigError(f"unknown extra '{extra}'", where="--extra", fix=f"Known: {', '.join(EXTRAS)}")
    for path in added:
        if path.suffix != ".whl" or not path.is_file():
            raise ConfigError("is no wheel", where=path)
    _check_output(output)
    with tempfile.TemporaryDirectory() as scratch:
        own = build_wheel(root, Path(scratch))
        console.print(f"wheelhouse: resolving for Python {target.python} on {target.machine}")
        versions = resolve([f"{own}[{','.join(extras)}]"], target)
        others = [f"{name}=={version}" for name, version in versions.items() if name != "genrecal"]
        with atomic_folder(output) as folder:
            console.print(f"wheelhouse: downloading {len(others)} wheels")
            _pip("download", "--no-deps", *target.options(), "--dest", str(folder), *others)
            for path in (own, *added):
                shutil.copyfile(path, folder / path.name)
            write_manifest(
                folder,
                kind=KIND,
                python=target.python,
                machine=target.machine,
                glibc=target.glibc,
                extras=list(extras),
            )
    size = sum(path.stat().st_size for path in output.glob("*.whl"))
    console.print(f"wheelhouse: {output} ({size / 1e6:.0f} MB). On the device:", soft_wrap=True)
    for line in device_lines(output.name, extras, added):
        console.print(line, markup=False, soft_wrap=True)
    return output


def device_lines(folder: str, extras: Sequence[str], added: Sequence[Path] = ()) -> list[str]:
    """What installs a wheelhouse on the device, line by line.

    onnxruntime and onnxruntime-gpu are one package to Python and two to pip, which lays them over each other:
    the CPU's, which `genrecal[edge]` brings, goes before a GPU's comes. What it brought along stays.
    """
    install = f"pip install --no-index --find-links {folder}"
    lines = [f'{install} "genrecal[{",".join(extras)}]"']
    if any(path.name.startswith(GPU_WHEEL) for path in added):
        lines += ["pip uninstall --yes onnxruntime", f"{install} --no-deps onnxruntime-gpu"]
    return lines


def build_wheel(root: Path, folder: Path) -> Path:
    """genrecal's own wheel, built from a copy: nothing is left in the checkout.

    Raises:
        ConfigError: `root` is no checkout.
    """
    missing = [name for name in SOURCES if not (root / name).exists()]
    if missing:
        raise ConfigError(
            f"is no checkout of genrecal: it has no {missing[0]}", where=root, fix="Run this from a checkout"
        )
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(root / name, copy / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("genrecal-*.whl")
    return wheel


def resolve(requirements: Sequence[str], target: Target) -> dict[str, str]:
    """Name and version of every package that `requirements` come to on the device; nothing is downloaded but
    metadata.

    Raises:
        GenrecalError: they cannot be had as wheels for it.
    """
    asked = list(requirements)
    for _ in range(ROUNDS):
        found = _report(asked, target)
        missing = _left_out(found, target)
        if not missing:
            break
        asked += missing
    return {_canonical(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in found}


def _report(requirements: Sequence[str], target: Target) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        where = ("--target", str(Path(scratch) / "nothing"), "--report", str(report))
        _pip("install", "--dry-run", "--ignore-installed", *where, *target.options(), *requirements)
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def _left_out(found: Sequence[dict[str, Any]], target: Target) -> list[str]:
    """Requirements of the found packages that hold on the device, and that none of them meets."""
    from packaging.requirements import Requirement

    names = {_canonical(entry["metadata"]["name"]) for entry in found}
    missing: dict[str, str] = {}
    for entry in found:
        for line in entry["metadata"].get("requires_dist", []):
            required = Requirement(line)
            holds = required.marker is None or any(
                required.marker.evaluate({**target.environment(), "extra": extra})
                for extra in entry.get("requested_extras") or [""]
            )
            if holds and _canonical(required.name) not in names:
                missing[_canonical(required.name)] = f"{required.name}{required.specifier}"
    return list(missing.values())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_output(output: Path) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    kind = read_json(output / MANIFEST).get("kind") if (output / MANIFEST).is_file() else None
    if kind != KIND:
        raise ConfigError("exists and is no wheelhouse", where=output, fix="Give another folder")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = (lines or done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GenrecalError(
            f"pip {arguments[0]} failed ({said.removeprefix('ERROR: ')[:300]})",
            where="wheelhouse",
            fix="Is the package index reachable, and does it have wheels for this Python and platform?",
        )
