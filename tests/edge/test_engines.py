"""Engines are kept by all that they depend on, in a folder that nobody else writes to."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime
import pytest

from edge.engines import engine_for, engine_versions, tensorrt_version, vision_profile
from edge.providers import has_engine
from genrecal.core.errors import DeviceError
from tests.edge.jetson.trees import agx_orin, orin_nano, put, thor

LIBRARY = "usr/lib/aarch64-linux-gnu/libnvinfer.so"


def test_versions_of_a_board(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    put(root, {f"{LIBRARY}.10.3.0": "", f"{LIBRARY}.10": "", f"{LIBRARY}": ""})
    assert engine_versions(root) == {
        "onnxruntime": onnxruntime.__version__,
        "tensorrt": "10.3.0",
        "jetson_linux": "36.4.3",
        "compute_capability": "87",
        "model": "NVIDIA Jetson Orin Nano Developer Kit Super",
    }
    assert tensorrt_version(tmp_path / "nowhere") is None


def test_whatever_differs_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    root = orin_nano(tmp_path / "nano")
    put(root, {f"{LIBRARY}.10.3.0": ""})
    profile = vision_profile("internvl", {"vision_config": {"image_size": 448}}, {})

    def at(graph: str = "a", shapes: object = profile, place: Path = root) -> tuple[Path, Path]:
        engine = engine_for(graph, shapes, root=place, cache=cache)  # type: ignore[arg-type]
        return engine.folder, engine.timings

    first = at()
    assert at() == first and all(folder.is_dir() for folder in first)
    assert at("b")[0] != first[0] and at("b")[1] == first[1]  # another graph: other engines, the same timings
    smaller = vision_profile("internvl", {"vision_config": {"image_size": 224}}, {})
    assert at(shapes=smaller)[0] != first[0] and at(shapes=None)[0] != first[0]
    others = [at(place=agx_orin(tmp_path / "agx")), at(place=thor(tmp_path / "thor"))]
    (root / f"{LIBRARY}.10.3.0").rename(root / f"{LIBRARY}.10.7.0")
    others.append(at())
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.0")
    others.append(at())
    assert len({first, *others}) == 5 and len({timings for _, timings in (first, *others)}) == 5


def test_an_engine_is_seen(tmp_path: Path) -> None:
    engine = engine_for("a", None, root=tmp_path, cache=tmp_path / "cache")
    assert not has_engine(engine)
    (engine.folder / "TensorrtExecutionProvider_sm87.engine").write_bytes(b"x")
    assert has_engine(engine)


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    """An engine is machine code; whoever can put one there runs it as us."""
    cache = tmp_path / "cache"
    engine = engine_for("a", None, root=tmp_path, cache=cache)
    assert engine.folder.stat().st_mode & 0o777 == 0o700
    engine.folder.chmod(0o777)
    with pytest.raises(DeviceError, match="others may write to"):
        engine_for("a", None, root=tmp_path, cache=cache)
    shutil.rmtree(engine.folder)
    (tmp_path / "elsewhere").mkdir()
    engine.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="others may write to"):
        engine_for("a", None, root=tmp_path, cache=cache)


def test_the_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRECAL_CACHE", str(tmp_path / "own"))
    assert engine_for("a", None, root=tmp_path).folder.is_relative_to(tmp_path / "own")


def test_profiles_of_families() -> None:
    qwen = vision_profile("qwen2_vl", {}, {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280})
    assert qwen is not None and qwen.bounds() == {
        "min": "pixel_values:16x1176,image_grid_thw:1x3",
        "opt": "pixel_values:5120x1176,image_grid_thw:1x3",
        "max": "pixel_values:5120x1176,image_grid_thw:1x3",
    }
    other = {"min_pixels": 64 * 64, "max_pixels": 64 * 64, "patch_size": 16, "temporal_patch_size": 1}
    finer = vision_profile("qwen2_vl", {}, other)
    assert finer is not None
    assert finer.bounds()["max"] == "pixel_values:16x768,image_grid_thw:1x3"
    large = vision_profile("qwen2_5_vl", {}, {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}})
    assert large is not None and [large.bounds()[name].split(",")[0] for name in ("opt", "max")] == [
        "pixel_values:5349x1176",
        "pixel_values:65536x1176",
    ]
    tiles = vision_profile("internvl", {"vision_config": {"image_size": [448, 448]}}, {})
    assert tiles is not None and tiles.bounds()["max"] == "pixel_values:4x3x448x448"
    assert vision_profile("idefics3", {}, {}) is None
