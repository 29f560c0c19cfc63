"""How a graph is given to ONNX Runtime: providers with their options, and word of it where it takes minutes.

cpu      CPU
cuda     CUDA, CPU
jetson   CUDA, CPU; for the vision graph of a build that is made for TensorRT, TensorRT before them
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import onnxruntime

from edge.device import CUDA_PROVIDER, TENSORRT_PROVIDER, Device

if TYPE_CHECKING:
    from edge.engines import Engine  # and with it the board's readers: for TensorRT alone

# On a Jetson every byte that an arena takes ahead is one that the CPU lacks; its default doubles.
_CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",
    # Otherwise cuDNN may take gigabytes as workspace to find the fastest convolution.
    "cudnn_conv_use_max_workspace": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
}
_WORKSPACE = 0.25  # of the memory, for TensorRT's search
EVERY_S = 5.0


def provider_options(device: Device, engine: Engine | None = None) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's `providers`, in order of preference.

    Args:
        device: where the graph runs, with its limit of memory.
        engine: where TensorRT keeps what it builds for this graph.
    """
    cuda = dict(_CUDA_OPTIONS)
    if device.memory_bytes is not None:
        cuda["gpu_mem_limit"] = str(device.memory_bytes)
    given: dict[str, dict[str, str]] = {CUDA_PROVIDER: cuda}
    if engine is not None:
        given[TENSORRT_PROVIDER] = tensorrt_options(engine, memory_bytes=device.memory_bytes)
    return [(name, given.get(name, {})) for name in device.providers]


def tensorrt_options(engine: Engine, *, memory_bytes: int | None = None) -> dict[str, str]:
    """Options of the TensorRT provider: what it may use, and where its engines and timings are kept."""
    options = {
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1",  # for graphs with QuantizeLinear; without any it changes nothing
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engine.folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engine.timings),
        "trt_context_memory_sharing_enable": "1",
    }
    if memory_bytes is not None:
        options["trt_max_workspace_size"] = str(int(memory_bytes * _WORKSPACE))
    if engine.profile is not None:
        for name, shapes in engine.profile.bounds().items():
            options[f"trt_profile_{name}_shapes"] = shapes
    return options


def open_session(
    path: Path,
    options: onnxruntime.SessionOptions,
    device: Device,
    engine: Engine | None = None,
    *,
    stream: TextIO | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph; where TensorRT has to build its engine first, tell so and how long it has taken.

    Args:
        path: the graph.
        options: of the session.
        device: where it runs.
        engine: for TensorRT.
        stream: where progress is told; None: standard error.
    """
    providers: Any = provider_options(device, engine)
    if engine is None or has_engine(engine):
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    what = f"TensorRT engine of {path.name} for this board; it is kept in {engine.folder}"
    with announced(what, stream=stream or sys.stderr):
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def has_engine(engine: Engine) -> bool:
    """Whether an engine was built already."""
    return any(engine.folder.glob("*.engine"))


@contextmanager
def announced(what: str, *, stream: TextIO, every_s: float = EVERY_S) -> Iterator[None]:
    """Print a line at the start, the elapsed time every few seconds, and one at the end."""
    started, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(every_s):
            print(f"building: {time.monotonic() - started:.0f} s", file=stream, flush=True)

    print(f"building: {what}", file=stream, flush=True)
    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    print(f"building: done in {time.monotonic() - started:.0f} s", file=stream, flush=True)


def as_arguments(options: Mapping[str, str]) -> str:
    """Options in a line, for logs and doctor."""
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "none"
