"""DeepSpeed's shared-memory communication operator for CPU ranks: compile it once, visibly.

DeepSpeed compiles it with g++ and ninja at the first launch of several CPU ranks, without a word, for one
to two minutes. `python -m genrecal.train.comm_operator` does it ahead; every launch looks here first for
the lock that a killed build leaves behind, on which later launches would wait for ever.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from genrecal.core.errors import TrainError

OPERATOR = "deepspeed_shm_comm"
STALE_LOCK_S = 300


def check_build() -> None:
    """Raise a TrainError when the operator cannot be built or a dead build blocks it."""
    for tool in ("ninja", "g++"):
        if shutil.which(tool) is None:
            raise TrainError(
                f"'{tool}' is not on PATH, and DeepSpeed compiles its CPU communication operator with it",
                fix="Install it (ninja comes with genrecal[train]; activate its environment)",
            )
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory(OPERATOR, verbose=False)) / "lock"
    waiting = False
    while lock.exists():
        if time.time() - lock.stat().st_mtime < STALE_LOCK_S:
            if not waiting:
                print(
                    f"another process compiles DeepSpeed's communication operator ({lock}); waiting",
                    flush=True,
                )
            waiting = True
            time.sleep(1)
            continue
        raise TrainError(
            "a build of DeepSpeed's communication operator was killed and left its lock",
            where=lock,
            fix="Delete this file and run again",
        )


def build() -> None:
    """Compile the operator, or load it when it is there."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    check_build()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load()


if __name__ == "__main__":
    build()
