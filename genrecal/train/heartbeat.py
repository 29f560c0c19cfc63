"""Signs of life between ranks: where one dies, on whatever node, all end within two minutes.

    every rank, every 2 s     writes its beat into the run's store; reads the verdict and the next rank's beat
    the next rank is silent   for `dead_after_s`: whoever watches it writes the verdict
    a rank fails              it writes the verdict itself, with its error and its exit code
    a verdict                 every rank leaves with its exit code, also from within a collective
    no answer from the store  for `dead_after_s`: its node is gone, and the rank leaves, too
    a rank is done            it says so; the one before it watches the one behind it

The store is torch's own (TCPStore): of torchrun's agent on the first node, or of the process that started the
ranks. A rank asks three small questions in a beat, however many ranks there are. Two threads do it, so that a
connection that hangs, as to a node without power, is noticed by the thread that does not use it. Both stand
still while the main thread holds Python's lock: saving, loading and hashing release it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, rendezvous

from genrecal.core.console import errors
from genrecal.core.errors import TrainError

BEAT_S = 2.0
# A look at a value counts for so many beats at most: a rank that was held up itself saw nobody's silence.
LONGEST_LOOK = 5
# After a verdict, so that every rank has read it before the store's host leaves.
LINGER_S = 1.5 * BEAT_S
DONE = "done"
VERDICT = "verdict"
RESUME = "The same command resumes"
# A process may train several runs one after the other, every rank the same ones.
_RUNS = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why no rank can go on."""

    rank: int | None  # whose fault it is; None: of the connection
    by: int | None  # the rank that found it; None: the process that started the ranks
    said: str  # for the ranks of other nodes to print; empty: the user has been told
    exit_code: int = TrainError.exit_code


class Heartbeat:
    """The signs of life of this rank, and its watch over the next one; `start_heartbeat` makes one."""

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        ranks: int,
        dead_after_s: float,
        arrive_within_s: float,
        beat_s: float = BEAT_S,
    ) -> None:
        """Starts beating at once.

        Args:
            store: this rank's own connection: a lock guards it while a question waits for its answer.
            rank: of this process.
            ranks: how many there are, two at least.
            dead_after_s: silence after which a rank, or the store, is given up.
            arrive_within_s: the same for a rank that has not given any sign yet.
            beat_s: between beats.
        """
        self.store, self.rank, self.ranks, self.beat_s = store, rank, ranks, beat_s
        self.dead_after_s, self.arrive_within_s = dead_after_s, arrive_within_s
        self.verdict: Verdict | None = None
        self._watched = (rank + 1) % ranks
        self._host = ""
        self._silence = Silence(LONGEST_LOOK * beat_s)
        self._beats = 0
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=task, name=f"heartbeat-{task.__name__}", daemon=True)
            for task in (self._talk, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def done(self) -> None:
        """This rank has finished, or leaves as all have agreed: its silence is no death."""
        self._stop()
        try:
            self.store.set(_beat_of(self.rank), DONE)
        except DistError:
            return  # nobody is left who could read it

    def fail(self, line: str, exit_code: int) -> bool:
        """This rank has failed, and leaves: so do all others, with the same exit code.

        Returns:
            Whether to tell the user; not where another rank has failed with the same line before.
        """
        self._stop()
        host = socket.gethostname()
        verdict = Verdict(
            rank=self.rank,
            by=self.rank,
            said=f"rank {self.rank} on {host} failed: {line}",
            exit_code=exit_code,
        )
        try:
            stands = post(self.store, verdict)
        except DistError:
            return True
        return stands == verdict or not stands.said.endswith(f"failed: {line}")

    def linger(self) -> None:
        """Wait until the others have read the verdict: the store's host may leave with this rank."""
        time.sleep(LINGER_S)

    def wait_for_verdict(self) -> None:
        """Give a dead rank the time to be found, which ends this process; return if none is."""
        time.sleep(self.dead_after_s + 4 * self.beat_s + LINGER_S)

    def _stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * self.beat_s)  # no longer: it may hang on the connection

    def _talk(self) -> None:
        try:
            while self.verdict is None:
                self._beats += 1
                self.store.set(_beat_of(self.rank), f"{self._beats} {socket.gethostname()}")
                self.verdict = self._look()
                if self._stopped.wait(self.beat_s):
                    return
        except DistError:
            return  # the store is gone for good; `_judge` waits whether this rank finishes all the same

    def _look(self) -> Verdict | None:
        """The run's verdict; where there is none and the watched rank is dead, the one it comes to now."""
        if found := _read(self.store, VERDICT):
            return Verdict(**json.loads(found))
        while self._watched != self.rank:
            state = _read(self.store, _beat_of(self._watched))
            if state != DONE:
                break
            self._watched = (self._watched + 1) % self.ranks
            self._silence = Silence(LONGEST_LOOK * self.beat_s)
        else:
            return None  # all others are done
        silent_s = self._silence.of(state)
        if state:
            self._host = state.partition(" ")[2]
        if silent_s <= (self.dead_after_s if state else self.arrive_within_s):
            return None
        since = f"gave no sign of life for {silent_s:.0f} s" if state else "has not started"
        on = f" on {self._host}" if state else ""
        said = f"rank {self._watched}{on} {since}; all ranks end. {RESUME}"
        return post(self.store, Verdict(rank=self._watched, by=self.rank, said=said))

    def _judge(self) -> None:
        unanswered = Silence(LONGEST_LOOK * self.beat_s)
        while not self._stopped.wait(self.beat_s / 2):
            silent_s = unanswered.of(self._beats)
            if self.verdict is None and silent_s > self.dead_after_s:
                said = f"no contact with the other ranks for {silent_s:.0f} s (the store at {_address()})"
                self.verdict = Verdict(rank=None, by=self.rank, said=f"{said}; this rank ends. {RESUME}")
            if self.verdict is not None:
                self._leave(self.verdict)

    def _leave(self, verdict: Verdict) -> None:
        # A line from who found it, and one from each other node; who started the ranks speaks, too.
        found = verdict.by == self.rank and verdict.rank is not None
        if verdict.said and (found or os.environ.get("LOCAL_RANK", "0") == "0"):
            errors.print(f"error: {verdict.said}", soft_wrap=True, markup=False)
        if not self._stopped.wait(LINGER_S):
            os._exit(verdict.exit_code)


class Silence:
    """For how long a value has been the same, counted by looks at it."""

    def __init__(self, longest_look_s: float) -> None:
        """A pause between two looks counts `longest_look_s` at most: it may be the looker's own."""
        self.longest_look_s = longest_look_s
        self._value: Any = None
        self._seen, self._silent_s = time.monotonic(), 0.0

    def of(self, value: Any) -> float:
        """Look at the value; seconds since it changed."""
        now = time.monotonic()
        if value == self._value:
            self._silent_s += min(now - self._seen, self.longest_look_s)
        else:
            self._value, self._silent_s = value, 0.0
        self._seen = now
        return self._silent_s


def start_heartbeat(*, dead_after_s: float, arrive_within_s: float) -> Heartbeat | None:
    """The heartbeat of the rank that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name; None: it is alone.

    Raises:
        TrainError: the store cannot be reached.
    """
    if int(os.environ["WORLD_SIZE"]) == 1:
        return None
    try:
        store, rank, ranks = next(rendezvous("env://", timeout=timedelta(seconds=arrive_within_s)))
    except DistError as error:
        line = str(error).splitlines()[0]
        raise TrainError(f"the other ranks cannot be reached ({line})", where=_address()) from None
    return Heartbeat(
        of_run(store, next(_RUNS)),
        rank=rank,
        ranks=ranks,
        dead_after_s=dead_after_s,
        arrive_within_s=arrive_within_s,
    )


def of_run(store: Store, number: int) -> Store:
    """The part of the store for the run with this number among those of a process."""
    return PrefixStore(f"genrecal/heartbeat/{number}", store)


def post(store: Store, verdict: Verdict) -> Verdict:
    """Write the verdict unless there is one; returns the one that is there."""
    stored = store.compare_set(VERDICT, "", json.dumps(asdict(verdict)))
    return Verdict(**json.loads(stored))


def is_echo(error: BaseException) -> bool:
    """Whether an error is what a collective raises where another rank is gone."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _read(store: Store, key: str) -> str:
    """The value of `key`, empty where it has none yet; `get` would wait for it."""
    return str(store.compare_set(key, "", "").decode())


def _beat_of(rank: int) -> str:
    return f"beat/{rank}"


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
