"""How near decoding comes to what memory allows: each token reads every weight of the decoder once.

    share = tokens/s x bytes of weights read per token / bytes per s that this machine reads, measured now

Reads of keys and values come on top and are left out, so the share is a little too low, more so with long
prompts.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.types import Facts
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME as MANIFEST

DECODER = "decoder_model_merged"
# Parts of parameter names, in every family that is known here: what a generated token does not read.
NOT_DECODER = ("visual", "vision_", "multi_modal_projector", "connector", "image_newline", "mlp1.")
EMBEDDING = "embed_tokens."
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ARRAY_BYTES = 2**28  # far above any CPU's cache
GPU_ARRAY_BYTES = 2**30
PASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """How fast memory was read, at best of several passes."""

    bytes_per_s: float
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Decoding against memory."""

    bytes_per_token: int
    bandwidth: Bandwidth
    share: float


def decoder_bytes(path: Path | None, facts: Facts) -> int | None:
    """Bytes of weights that one generated token reads; None where the folder does not tell.

    Of a build the decoder's graph with its head, as it is on disk. Of a checkpoint every parameter but those
    of vision and of the input embedding, which one row is taken from, in the precision that it runs in; a
    head that shares the embedding's weights reads them all.
    """
    if path is None:
        return None
    if facts.kind == "build":
        content = read_json(path / MANIFEST)
        graph = content["graphs"][DECODER]
        sizes = {name: entry["bytes"] for name, entry in content["files"].items()}
        found = sum(size for name, size in sizes.items() if name in (graph, f"{graph}_data"))
        return found or None
    item = ITEM_BYTES.get(facts.precision)
    files = sorted(path.glob("*.safetensors"))
    if item is None or not files:
        return None
    from safetensors import safe_open

    sizes = {}
    for file in files:
        with safe_open(file, framework="np") as weights:
            names = weights.keys()
            for name in names:
                sizes[name] = int(np.prod(weights.get_slice(name).get_shape()))
    tied = not any("lm_head." in name for name in sizes)
    read = [
        size
        for name, size in sizes.items()
        if not any(part in name for part in NOT_DECODER) and (tied or EMBEDDING not in name)
    ]
    return item * sum(read) or None


def measured_bandwidth(device: str, *, threads: int | None = None) -> Bandwidth | None:
    """The bandwidth of the memory that `device` computes from; None where nothing here can read it."""
    if device == "cpu":
        return cpu_bandwidth(threads or len(os.sched_getaffinity(0)))
    # Where torch is not loaded already, a build answers, and nothing else here computes on a GPU.
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    source = torch.ones(GPU_ARRAY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    best_s = float("inf")
    for _ in range(PASSES + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        best_s = min(best_s, start.elapsed_time(end) / 1e3)
    how = "copy of 1 GiB on the GPU by torch, read and write"
    return Bandwidth(bytes_per_s=2 * GPU_ARRAY_BYTES / best_s, how=how)


def cpu_bandwidth(threads: int, *, array_bytes: int = ARRAY_BYTES) -> Bandwidth:
    """Reads an array that no cache holds, with as many threads as answer."""
    array = np.ones(array_bytes // 4, dtype=np.float32)
    parts = np.array_split(array, threads)
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            started = time.perf_counter()
            # A maximum reads each number once, keeps nothing, and lets other threads run.
            list(pool.map(np.max, parts))
            best_s = min(best_s, time.perf_counter() - started)
    return Bandwidth(
        bytes_per_s=array.nbytes / best_s,
        how=f"reading {array_bytes // 2**20} MiB with {threads} thread{'s' if threads > 1 else ''}",
    )


def roofline(tokens_per_s: float, bytes_per_token: int, bandwidth: Bandwidth) -> Roofline:
    share = tokens_per_s * bytes_per_token / bandwidth.bytes_per_s
    return Roofline(bytes_per_token=bytes_per_token, bandwidth=bandwidth, share=share)
