"""Long readings say how far they are: a bar on a terminal, lines in a log; short ones nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from genrecal.core.console import console, progress

QUIET_S = 3  # what ends sooner is not worth a line
SAY_EVERY_S = 30

Item = TypeVar("Item")


def with_eta(items: Iterable[Item], *, what: str, total: int, done: Callable[[Item], int]) -> Iterator[Item]:
    """Yield `items` and print the progress.

    Args:
        items: what is read.
        what: the line's beginning.
        total: all there is to do, in any unit.
        done: how much is done with an item, in the same unit.
    """
    started = said = time.monotonic()
    shown, terminal = None, console.is_terminal
    try:
        for item in items:
            yield item
            now = time.monotonic()
            if now - started < QUIET_S:
                continue
            part = min(done(item), total)
            if terminal:
                if shown is None:
                    shown = progress()
                    shown.start()
                    task = shown.add_task(what, total=total, note="")
                shown.update(task, completed=part)
            elif now - said >= SAY_EVERY_S and part:
                left = (now - started) / part * (total - part)
                console.print(f"{what}: {part / total:.0%}, ETA {left:.0f} s")
                said = now
    finally:
        if shown is not None:
            shown.stop()
