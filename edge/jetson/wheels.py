"""Which onnxruntime-gpu a Jetson needs, and where it comes from: the general package index has none for it.

etc/nv_tegra_release -> release of Jetson Linux -> JetPack -> Python, CUDA, folder of a package index

The releases were written down from documentation, not from boards. The index's address is not kept here: it
has moved before, and a device must not install from an address that someone else has taken over since.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.jetson.board import Module
from edge.jetson.sysfs import read_text

# The oldest that the runtime takes: pyproject.toml asks for it, and the linter's tables are of it.
OLDEST_RUNTIME = "1.23.2"
INDEX_VARIABLE = "JETSON_INDEX_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class JetPack:
    """What a release of Jetson's Linux comes with."""

    name: str
    python: str
    cuda: str
    index: str
    """The folder of the Jetson AI Lab's package index that has wheels for it."""


# Major release of Jetson Linux (L4T) -> its JetPack. 6.0 has an older CUDA, under the same release.
JETPACKS = {
    "36": JetPack(name="JetPack 6.1 or newer", python="3.10", cuda="12.6", index="jp6/cu126"),
    "38": JetPack(name="JetPack 7", python="3.12", cuda="13.0", index="sbsa/cu130"),
}


def jetson_release(root: Path) -> str | None:
    """The major release of Jetson's Linux; None on other machines."""
    found = re.match(r"#?\s*R(\d+)", read_text(root / "etc/nv_tegra_release") or "")
    return found[1] if found else None


def older(version: str, oldest: str = OLDEST_RUNTIME) -> bool:
    """Whether a version comes before another; what follows its numbers (rc1, +cu126) does not count."""
    return _numbers(version) < _numbers(oldest)


def wheel_of(jetpack: JetPack, module: Module | None, python: Sequence[int]) -> str:
    """The wheel that fits, in words.

    Args:
        jetpack: of the board.
        module: its kind, where it is known.
        python: the interpreter that runs now.
    """
    tag = f"cp{jetpack.python.replace('.', '')}"
    parts = [f"onnxruntime_gpu {OLDEST_RUNTIME} or newer, {tag} linux_aarch64, for CUDA {jetpack.cuda}"]
    if module is not None:
        capability = module.compute_capability
        parts.append(f"built for compute capability {capability[:-1]}.{capability[-1]}")
    running = f"{python[0]}.{python[1]}"
    if running != jetpack.python:
        parts.append(f"made for Python {jetpack.python}, while this is {running}")
    return ", ".join(parts)


def line_of(jetpack: JetPack) -> str:
    """The line that installs it, and where the address in it comes from."""
    return (
        f'pip uninstall --yes onnxruntime; pip install --index-url "${INDEX_VARIABLE}" '
        f'"onnxruntime-gpu>={OLDEST_RUNTIME}". Set {INDEX_VARIABLE} first: the address of the package index '
        "of NVIDIA's Jetson AI Lab, which the README of the jetson-containers project on GitHub gives, with "
        f"/{jetpack.index} at its end"
    )


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
