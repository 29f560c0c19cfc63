"""Graphs as the export tests run them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session of one thread on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
