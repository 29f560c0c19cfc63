"""`python -m tests.train.beat WHAT DEAD_AFTER_S`: a rank that does nothing but give signs of life.

WHAT: wait (for ever), finish (after a second), fail (with a DataError), hold (Python's lock, then finish).
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

from torch.distributed import rendezvous

from genrecal.core.errors import DataError
from genrecal.train.heartbeat import Heartbeat, of_run


def main() -> None:
    what, dead_after_s = sys.argv[1], float(sys.argv[2])
    store, rank, ranks = next(rendezvous("env://"))
    heart = Heartbeat(
        of_run(store, 0),
        rank=rank,
        ranks=ranks,
        dead_after_s=dead_after_s,
        arrive_within_s=60,
        beat_s=0.2,
    )
    print("started", flush=True)
    if what == "wait":
        time.sleep(600)
    if what == "hold":
        ctypes.PyDLL(None).usleep(int(0.6 * dead_after_s * 1e6))  # PyDLL, unlike CDLL, keeps the lock
        time.sleep(2 * dead_after_s)
    if what == "fail":
        time.sleep(1)
        heart.fail("data.json: is gone", DataError.exit_code)
        heart.linger()
        os._exit(DataError.exit_code)
    time.sleep(1)
    heart.done()


if __name__ == "__main__":
    main()
