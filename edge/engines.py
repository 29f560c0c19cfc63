"""Where TensorRT's engines are kept, so that none is built twice and none is used where it does not belong.

    CACHE/engines/KEY/     engines of one graph: KEY is a hash of all that an engine depends on
    CACHE/timings/KEY/     what TensorRT measured while building; serves every graph of a board

An engine is machine code for one GPU, made by one version of TensorRT from one graph for a range of shapes.
ONNX Runtime does not notice when any of these changes, so they are the folder's name. Engines are code that
is run: a folder that others may write to is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from edge.build import Build
from edge.jetson.board import jetson_linux, read_board
from edge.jetson.sysfs import read_text
from genrecal.core.errors import DeviceError

_LIBRARIES = ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/local/tensorrt/lib")
_TENSORRT = re.compile(r"libnvinfer\.so\.(\d+\.\d+\.\d+(?:\.\d+)?)")
_USUAL_PIXELS = 1024 * 1024
_TILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Shapes of a graph's inputs that its engine serves: the least, those it is tuned for, and the most."""

    least: Mapping[str, tuple[int, ...]]
    usual: Mapping[str, tuple[int, ...]]
    most: Mapping[str, tuple[int, ...]]

    def bounds(self) -> dict[str, str]:
        """As the TensorRT provider's options have them: min, opt and max, `name:1x3x448x448,...`."""
        return {"min": _shapes(self.least), "opt": _shapes(self.usual), "max": _shapes(self.most)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Where the engines of one graph lie."""

    folder: Path
    timings: Path
    profile: Profile | None
    """None: ONNX Runtime builds for the shapes that it sees, and again where others come."""


def vision_profile(
    family: str, config: Mapping[str, Any], preprocessor_config: Mapping[str, Any]
) -> Profile | None:
    """The shapes that a build's vision encoder can meet; None for a family with more dynamic inputs.

    Args:
        family: the build's.
        config: its config.json.
        preprocessor_config: its preprocessor_config.json.
    """
    if family in ("qwen2_vl", "qwen2_5_vl"):
        size = preprocessor_config.get("size") or {}
        least = int(preprocessor_config.get("min_pixels") or size.get("shortest_edge") or 56 * 56)
        most = int(preprocessor_config.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280)
        pixels = (least, min(max(_USUAL_PIXELS, least), most), most)
        patch = int(preprocessor_config.get("patch_size") or 14)
        features = 3 * int(preprocessor_config.get("temporal_patch_size") or 2) * patch**2
        patches = [max(4, number // patch**2) for number in pixels]
        return _profile([(count, features) for count in patches], {"image_grid_thw": (1, 3)})
    if family == "internvl":
        image = (config.get("vision_config") or {}).get("image_size", 448)
        height, width = image if isinstance(image, list) else (image, image)
        return _profile([(count, 3, int(height), int(width)) for count in (1, _TILES, _TILES)], {})
    return None


def build_engine(build: Build) -> Engine:
    """Where the engines of a build's vision graph are kept on this machine."""
    stem = build.vision_encoder.relative_to(build.folder).as_posix()
    listed = build.manifest["files"]
    files = {name: entry["sha256"] for name, entry in listed.items() if name.startswith(stem)}
    profile = vision_profile(build.family, build.config, build.preprocessor_config)
    return engine_for(key_of(files), profile)


def engine_for(
    graph_sha256: str,
    profile: Profile | None,
    *,
    root: Path = Path("/"),
    cache: Path | None = None,
) -> Engine:
    """Where the engines of a graph are kept on this machine; the folders are made.

    Args:
        graph_sha256: of the graph with its weights.
        profile: its shapes.
        root: the root of the file system, for the versions.
        cache: where all of it lies; None: GENRECAL_CACHE, else ~/.cache/genrecal.

    Raises:
        DeviceError: the folder is somebody else's, or others may write to it.
    """
    base = cache or cache_folder()
    versions = engine_versions(root)
    of_graph = {**versions, "graph": graph_sha256, "profile": None if profile is None else profile.bounds()}
    engine = Engine(
        folder=base / "engines" / key_of(of_graph),
        timings=base / "timings" / key_of(versions),
        profile=profile,
    )
    for folder in (base, base / "engines", base / "timings", engine.folder, engine.timings):
        _own(folder)
    return engine


def engine_versions(root: Path = Path("/")) -> dict[str, str | None]:
    """What an engine depends on besides its graph: ONNX Runtime, TensorRT, Jetson Linux, the GPU."""
    board = read_board(root, query=lambda: None)
    module = board.module if board else None
    return {
        "onnxruntime": onnxruntime.__version__,
        "tensorrt": tensorrt_version(root),
        "jetson_linux": jetson_linux(root),
        "compute_capability": module.compute_capability if module else None,
        "model": read_text(root / "proc/device-tree/model"),
    }


def tensorrt_version(root: Path = Path("/")) -> str | None:
    """The version in the name of TensorRT's library; None where there is none."""
    names = [path.name for folder in _LIBRARIES for path in sorted((root / folder).glob("libnvinfer.so.*"))]
    found = [match[1] for name in names if (match := _TENSORRT.fullmatch(name))]
    return found[-1] if found else None


def key_of(facts: Mapping[str, Any]) -> str:
    """A name that differs where any of the facts does."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Where a user's engines lie."""
    given = os.environ.get("GENRECAL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "genrecal"


def _own(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise DeviceError(
            "is a folder that others may write to; engines in it would be run",
            where=folder,
            fix=f"chmod go-w {folder}, or set GENRECAL_CACHE to a folder of your own",
        )


def _profile(pixels: list[tuple[int, ...]], fixed: Mapping[str, tuple[int, ...]]) -> Profile:
    least, usual, most = ({"pixel_values": shape, **fixed} for shape in pixels)
    return Profile(least=least, usual=usual, most=most)


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
