"""A checkpoint in several processes that share the questions; on cuda each sees one GPU.

    answer(batch) -> a process that is free -> answers

Batches are the same as with one process, so answers are, too. A process that is quicker takes more of them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from queue import SimpleQueue

from bench.types import Answer, Facts, Query, Subject, SubjectSpec
from genrecal.core.errors import BenchError, DeviceError

VISIBLE = "CUDA_VISIBLE_DEVICES"


class ProcessesSubject:
    """`spec.processes` copies of one checkpoint."""

    def __init__(self, spec: SubjectSpec) -> None:
        devices = gpus(spec.processes) if spec.device == "cuda" else [None] * spec.processes
        self.spec, self.lanes = spec, spec.processes
        context = multiprocessing.get_context("spawn")
        one = replace(spec, processes=1)
        self._all = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_open, initargs=(one, device))
            for device in devices
        ]
        self._free: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for process in self._all:
            self._free.put(process)
        opened = [process.submit(_facts) for process in self._all]
        try:
            found = [future.result() for future in opened]
        except BrokenProcessPool:
            self.close()
            raise BenchError(
                "a process ended while it opened the model", where=spec.name, fix="Is there memory for all?"
            ) from None
        except BaseException:
            self.close()
            raise
        self.facts: Facts = found[0][0]
        self.fingerprint: str = found[0][1]
        self.chunk = spec.batch_size

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The batch, answered by a process that is free.

        Raises:
            BenchError: the process was killed.
        """
        process = self._free.get()
        try:
            return process.submit(_answer, queries).result()
        except BrokenProcessPool:
            raise BenchError(
                "a process that answers was killed",
                where=self.spec.name,
                fix="The same command goes on; take a smaller --batch-size if memory ran out",
            ) from None
        finally:
            self._free.put(process)

    def forget(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        for process in self._all:
            process.shutdown(wait=False, cancel_futures=True)


def gpus(count: int) -> list[str | None]:
    """The GPUs of `count` processes, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        DeviceError: there are fewer.
    """
    import torch

    named = os.environ.get(VISIBLE)
    there = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    if count > len(there):
        raise DeviceError(f"{count} processes need a GPU each, {len(there)} are visible", where="--processes")
    return [*there[:count]]


# In each process; a spawned one begins with nothing.
_subject: Subject | Exception | None = None


def _open(spec: SubjectSpec, device: str | None) -> None:
    global _subject
    if device is not None:
        os.environ[VISIBLE] = device  # before torch is imported
    from bench.subject import open_subject

    try:
        _subject = open_subject(spec)
    except Exception as error:  # an initializer that raises ends the process without a word
        _subject = error


def _opened() -> Subject:
    if isinstance(_subject, Exception):
        raise _subject
    assert _subject is not None
    return _subject


def _facts() -> tuple[Facts, str]:
    subject = _opened()
    return subject.facts, subject.fingerprint


def _answer(queries: Sequence[Query]) -> list[Answer]:
    return _opened().answer(queries)
