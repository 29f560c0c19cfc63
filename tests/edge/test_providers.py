"""What ONNX Runtime is told for each device; the options themselves were not tried on a GPU."""

from __future__ import annotations

import io
import time
from pathlib import Path

import onnxruntime
import pytest

from edge import build as layout
from edge.device import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER, Device, for_vision, within
from edge.engines import Engine, Profile
from edge.providers import announced, open_session, provider_options
from genrecal.core.errors import DeviceError

JETSON = Device(name="jetson", board="NVIDIA Jetson Orin Nano Developer Kit")


def test_the_cpu_gets_no_options() -> None:
    assert provider_options(Device(name="cpu", board=None)) == [(CPU_PROVIDER, {})]


def test_an_arena_takes_what_is_asked_for_and_no_more() -> None:
    (cuda, options), (cpu, _) = provider_options(within(JETSON, limit_bytes=None, free_bytes=3 * 10**9))
    assert (cuda, cpu) == (CUDA_PROVIDER, CPU_PROVIDER)
    assert options == {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_use_max_workspace": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": "3000000000",
    }


@pytest.mark.parametrize(
    ("name", "given", "limit"),
    [("jetson", None, 7), ("jetson", 5, 5), ("cuda", None, None), ("cuda", 5, 5), ("cpu", 5, None)],
)
def test_whose_memory_is_limited(name: str, given: int | None, limit: int | None) -> None:
    """A GPU with memory of its own is not limited by what the system has free."""
    assert within(Device(name=name, board=None), limit_bytes=given, free_bytes=7).memory_bytes == limit


def test_tensorrt_for_the_vision_graph_of_its_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for target in layout.TARGETS:
        assert for_vision(Device(name="cpu", board=None), target).providers == (CPU_PROVIDER,)
    assert for_vision(JETSON, "jetson") is JETSON
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    with pytest.raises(
        DeviceError, match=r"made for TensorRT.*has no TensorrtExecutionProvider.*--target jetson"
    ):
        for_vision(JETSON, "jetson-tensorrt")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT_PROVIDER, CUDA_PROVIDER])
    device = for_vision(within(JETSON, limit_bytes=4000, free_bytes=1), "jetson-tensorrt")
    shapes = {"pixel_values": (1, 3, 448, 448)}
    profile = Profile(least=shapes, usual=shapes, most={"pixel_values": (4, 3, 448, 448)})
    engine = Engine(folder=tmp_path / "e", timings=tmp_path / "t", profile=profile)
    (first, options), (second, _), _ = provider_options(device, engine)
    assert (first, second) == (TENSORRT_PROVIDER, CUDA_PROVIDER)
    assert options == {
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "e"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "t"),
        "trt_context_memory_sharing_enable": "1",
        "trt_max_workspace_size": "1000",
        "trt_profile_min_shapes": "pixel_values:1x3x448x448",
        "trt_profile_opt_shapes": "pixel_values:1x3x448x448",
        "trt_profile_max_shapes": "pixel_values:4x3x448x448",
    }


def test_a_build_that_takes_long_is_announced() -> None:
    stream = io.StringIO()
    with announced("TensorRT engine of vision_encoder.onnx", stream=stream, every_s=0.05):
        time.sleep(0.2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "building: TensorRT engine of vision_encoder.onnx"
    assert 2 <= lines.count("building: 0 s") <= 4 and lines[-1] == "building: done in 0 s"
    with pytest.raises(ZeroDivisionError), announced("x", stream=stream):
        raise ZeroDivisionError
    assert stream.getvalue().splitlines()[-1] == "building: x"  # what failed is not called done


def test_a_session_with_options_runs_here(build_folder: Path, tmp_path: Path) -> None:
    """On the CPU: the same function, and a word of what is built only where an engine is."""
    device, stream = Device(name="cpu", board=None), io.StringIO()
    path = build_folder / layout.graph_file(layout.EMBED_TOKENS, "")
    open_session(path, onnxruntime.SessionOptions(), device, stream=stream)
    assert stream.getvalue() == ""
    engine = Engine(folder=tmp_path, timings=tmp_path, profile=None)
    session = open_session(path, onnxruntime.SessionOptions(), device, engine, stream=stream)
    assert session.get_providers() == [CPU_PROVIDER] and "embed_tokens.onnx" in stream.getvalue()
    (tmp_path / "TensorrtExecutionProvider_1.engine").write_bytes(b"")
    again = io.StringIO()
    open_session(path, onnxruntime.SessionOptions(), device, engine, stream=again)
    assert again.getvalue() == ""
