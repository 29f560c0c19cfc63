"""A process whose parent is gone ends, too: nobody would wait for it, and it may hold a GPU."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

from genrecal.core.errors import TrainError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that came (Linux).

    A parent that died while this process was still importing is noticed here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(TrainError.exit_code)
