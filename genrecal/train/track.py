"""Training figures to TensorBoard, W&B, trackio or MLflow, by name; none of them can stop or slow a run.

    record of metrics.jsonl -> flat names -> a bounded queue for each tracker -> its own thread -> the tracker

metrics.jsonl is always written, by the loop. A tracker that is not installed, cannot start, raises or hangs
costs one line of warning and is dropped. Only rank 0 opens trackers.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from genrecal.core.console import errors
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME
from genrecal.train.trackers import TRACKERS, Sink, Target

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
FOLDER = "trackers"
# What may wait for one tracker; what comes when as many wait is dropped and counted.
WAITING = 1000
# How long the start of a run waits for all trackers together, so that what fails at once is said before it.
START_S = 20.0
# Without any progress for so long a tracker hangs; W&B takes 90 s to find out that it has no network.
STALL_S = 120.0
# How long the end of a run waits for all trackers together.
CLOSE_S = 60.0


class Feed:
    """One tracker behind a queue and a daemon thread, so that whatever it does, training goes on."""

    def __init__(
        self, name: str, start: Callable[[], Sink], *, waiting: int = WAITING, stall_s: float = STALL_S
    ) -> None:
        self.name = name
        self.dropped = 0
        self.alive = True  # False once it failed or hung; it is then given nothing more
        self._start, self._stall_s = start, stall_s
        self._given = self._done = 0
        self._progress = time.monotonic()
        self._started = threading.Event()  # or failed to
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def wait_for_start(self, deadline: float) -> None:
        """Wait until it has started or failed, or until `deadline` on the monotonic clock."""
        self._started.wait(max(0.0, deadline - time.monotonic()))

    def put(self, values: dict[str, float], step: int) -> None:
        """Hand over a step's figures; returns at once, whatever the tracker is doing."""
        if not self.alive:
            self.dropped += 1
            return
        now = time.monotonic()
        if self._given == self._done:
            self._progress = now  # nothing was waiting, so it has not been idle
        elif now - self._progress > self._stall_s:
            self._give_up(f"has taken nothing for {now - self._progress:.0f} s and is dropped")
        try:
            self._queue.put_nowait((values, step))
            self._given += 1
        except queue.Full:
            self.dropped += 1

    def close(self, deadline: float) -> None:
        """Let it finish, until `deadline` on the monotonic clock."""
        if not self.alive:
            return
        try:
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            lost = self._given - self._done + self.dropped
            self._give_up(f"did not finish in time; {lost} records are not in it")
        elif self.alive and self.dropped:
            _warn(self.name, f"is slower than training: {self.dropped} records are not in it")

    def _serve(self) -> None:
        try:
            sink = self._start()
            self._progress = time.monotonic()
            self._started.set()
            while (item := self._queue.get()) is not None:
                sink.log(*item)
                self._done += 1
                self._progress = time.monotonic()
            sink.close()
        except (Exception, SystemExit) as error:  # a library's own, whatever it raises
            line = " ".join(str(error).split())[:200]
            self._give_up(f"failed and is dropped ({type(error).__name__}: {line})")
        finally:
            self._started.set()

    def _give_up(self, what: str) -> None:
        with self._lock:
            if self.alive:
                _warn(self.name, what)
                self.alive = False  # after the line, so that who sees it can rely on having been told


class Trackers:
    """All trackers of a run; with none of them it does nothing."""

    def __init__(self, feeds: Iterable[Feed] = ()) -> None:
        self.feeds = tuple(feeds)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Log a line of metrics.jsonl.

        Args:
            record: the line; `flatten` says what of it is logged, and under which names.
            step: the optimizer step over all stages (`steps_before` + the stage's own step).
        """
        values = flatten(record)
        for feed in self.feeds:
            feed.put(values, step)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Let the trackers finish; those that have not after `timeout_s` seconds are left behind."""
        deadline = time.monotonic() + timeout_s
        for feed in self.feeds:
            feed.close(deadline)


def open_trackers(
    names: Iterable[str], *, run_folder: Path, project: str, config: dict[str, Any], resume: bool
) -> Trackers:
    """Start the named trackers; a package that is missing is warned of here, before training starts.

    Args:
        names: keys of TRACKERS.
        run_folder: RUN; its name is the run's name, and what trackers keep on disk goes to RUN/trackers/.
        project: the project or experiment that the run is listed under.
        config: the run's config as JSON values.
        resume: go on with the trackers' runs of this folder, where they were begun.
    """
    target = Target(
        folder=run_folder / FOLDER, name=run_folder.resolve().name, project=project, config=config
    )
    feeds = []
    for name in dict.fromkeys(names):
        # The packages are imported by the names of the trackers. A folder of such a name, as W&B makes one
        # in the working folder, is found too, but has no origin.
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            _warn(name, f"is not installed, so it gets nothing; pip install {name}")
            continue
        feeds.append(Feed(name, partial(TRACKERS[name], target, resume)))
    deadline = time.monotonic() + START_S
    for feed in feeds:
        feed.wait_for_start(deadline)
    return Trackers(feeds)


def flatten(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by path; the stage comes first, as its terms are compared within it.

        {"stage": "distill", "step": 7, "loss": 1.5, "terms": {"kl": 0.2}}
        -> {"distill/loss": 1.5, "distill/terms/kl": 0.2}

    `step` and `steps` are left out, as are texts, null and numbers that are not finite.
    """
    values: dict[str, float] = {}

    def walk(node: Mapping[str, Any], path: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, f"{path}{key}/")
            elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                values[f"{path}{key}"] = float(value)

    stage = record.get("stage")
    kept = {key: value for key, value in record.items() if key not in ("stage", "step", "steps")}
    walk(kept, f"{stage}/" if stage else "")
    return values


def steps_before(stages: Path, number: int) -> int:
    """Optimizer steps of the stages before stage `number` (from 1), by the manifests in RUN/stages/."""
    return sum(
        int(read_json(path)["steps"])
        for path in stages.glob(f"*/{NAME}")
        if int(path.parent.name.partition("-")[0]) < number
    )


def _warn(name: str, what: str) -> None:
    errors.print(f"warning: tracker {name} {what}", soft_wrap=True, markup=False)
