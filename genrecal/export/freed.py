"""Freed memory goes back to the system between the parts of an export."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def return_freed_memory() -> None:
    """Collect what nothing refers to, and let the allocator give back what it keeps for later.

    Torch and ONNX Runtime free thousands of tensors just small enough for the allocator's own heap, which
    then holds on to gigabytes while the next graph is opened.
    """
    gc.collect()
    if sys.platform == "linux":
        # glibc alone has it; other allocators give memory back themselves.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
